package io.moe4j.backend.flashinfer;

import io.moe4j.api.DeviceException;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Optional;
import java.util.function.Consumer;
import org.jspecify.annotations.Nullable;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Forwards that come again, recorded as CUDA graphs. FlashInfer sets up two grouped products anew
 * at each call, which keeps the calling thread longer than one token keeps the card. A forward is
 * replayed only if everything that a recording holds is the same: every tensor's address, dtype,
 * shape and strides, the workspace, the tactics. What the tensors contain is read by the replay. So
 * a replay does what the call would have done, to the bit.
 *
 * <p>Recorded is what comes for the {@value #TIMES}rd time, on a stream of its own, and launched on
 * the caller's. The recordings used last are kept. Safe for several threads.
 */
final class Replays implements AutoCloseable {
  /** Forwards that come once or twice are not worth the recording, some ten eager ones. */
  static final int TIMES = 3;

  private static final Logger LOG = LoggerFactory.getLogger(Replays.class);

  private final Device device;
  private final int kept;
  private final LinkedHashMap<Key, Entry> entries = new LinkedHashMap<>(16, 0.75f, true);
  private Device.@Nullable OwnedStream recorder;
  private boolean failed;

  /**
   * @param device open
   * @param kept how many
   */
  Replays(Device device, int kept) {
    this.device = device;
    this.kept = kept;
  }

  /** What a recording holds on to. */
  static final class Key {
    private static final int PER_TENSOR = 5;

    private final long[] parts;
    private final DType[] types;
    private final int hash;

    /**
     * @param numbers whatever else it depends on
     * @param tensors matrices in device memory
     */
    Key(long[] numbers, Tensor... tensors) {
      parts = Arrays.copyOf(numbers, numbers.length + PER_TENSOR * tensors.length);
      types = new DType[tensors.length];
      int at = numbers.length;
      for (int i = 0; i < tensors.length; i++) {
        Tensor t = tensors[i];
        types[i] = t.dtype();
        parts[at++] = t.deviceAddress();
        for (int d = 0; d < 2; d++) {
          parts[at++] = t.size(d);
          parts[at++] = t.stride(d);
        }
      }
      hash = Arrays.hashCode(parts);
    }

    @Override
    public boolean equals(@Nullable Object other) {
      return other instanceof Key k
          && Arrays.equals(parts, k.parts)
          && Arrays.equals(types, k.types);
    }

    @Override
    public int hashCode() {
      return hash;
    }
  }

  private static final class Entry {
    private int times;
    private Device.@Nullable Graph graph;
  }

  /** {@return whether anything is recorded at all} */
  boolean active() {
    return kept > 0;
  }

  /**
   * Enqueues a forward, by replay where it has come often enough.
   *
   * @param key equal only if {@code work} enqueues the same
   * @param stream where to, not one that records
   * @param work enqueues it on a stream; allocates nothing
   */
  void run(Key key, DeviceStream stream, Consumer<DeviceStream> work) {
    Entry entry;
    synchronized (this) {
      entry = failed ? null : entry(key);
      if (entry != null && entry.graph == null && entry.times >= TIMES - 1) {
        entry.graph = record(work).orElse(null);
      }
      Device.Graph graph = entry == null ? null : entry.graph;
      if (graph != null) {
        graph.launch(stream);
        return;
      }
    }
    work.accept(stream);
    if (entry != null) {
      synchronized (this) {
        entry.times++; // not of one that failed
      }
    }
  }

  private Entry entry(Key key) {
    Entry entry = entries.get(key);
    if (entry == null) {
      entry = new Entry();
      entries.put(key, entry);
      if (entries.size() > kept) {
        Map.Entry<Key, Entry> oldest = entries.firstEntry();
        entries.remove(oldest.getKey());
        // A graph that still runs is freed when it has finished.
        close(oldest.getValue());
      }
    }
    return entry;
  }

  private Optional<Device.Graph> record(Consumer<DeviceStream> work) {
    Device.OwnedStream on = recorder;
    if (on == null) {
      on = device.newStream();
      recorder = on;
    }
    DeviceStream stream = on;
    Optional<Device.Graph> graph;
    try {
      graph = device.capture(stream, () -> work.accept(stream));
    } catch (DeviceException e) {
      LOG.warn("forwards of FlashInfer are not replayed: recording one failed", e);
      graph = Optional.empty();
    }
    failed = graph.isEmpty();
    return graph;
  }

  /** {@return how many are recorded now} */
  synchronized int recorded() {
    return (int) entries.values().stream().filter(e -> e.graph != null).count();
  }

  private static void close(Entry entry) {
    Device.Graph graph = entry.graph;
    if (graph != null) {
      graph.close();
    }
  }

  @Override
  public synchronized void close() {
    entries.values().forEach(Replays::close);
    entries.clear();
    Device.OwnedStream on = recorder;
    if (on != null) {
      on.close();
      recorder = null;
    }
  }
}
