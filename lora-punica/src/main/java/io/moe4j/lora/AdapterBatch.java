package io.moe4j.lora;

import io.moe4j.api.AdapterException;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.tensor.Tensor;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * The adapters of one forward: a slot for each distinct one, leased until {@link #release} or
 * {@link #close}, and the slot of every token. One batch serves all layers of the model.
 *
 * <p>An engine that must not allocate makes one batch per worker with {@link
 * AdapterRegistry#newBatch} and resets it for every forward; contexts stay the same objects then
 * and show the new state.
 *
 * <p>Threads: reset, release and close belong to one thread at a time; while the batch is open, its
 * contexts may be read by any number of threads.
 */
public final class AdapterBatch implements AutoCloseable {
  private final AdapterRegistry registry;
  private final int[] layerIndices;
  private final @Nullable BatchContext[] contexts;
  private final @Nullable AdapterEntry[] wanted;
  private final @Nullable LoadedAdapter[] leased;
  private final @Nullable LoadedAdapter[] bySlot;
  // By position in the host cache: 1 + where the adapter stands in wanted; all 0 between calls.
  private final int[] positions;
  private final TokenMapping mapping;
  private int adapters;
  private boolean open;
  private boolean closed;

  AdapterBatch(AdapterRegistry registry, int[] layerIndices, int hostCache) {
    this.registry = registry;
    this.layerIndices = layerIndices;
    this.contexts = new BatchContext[layerIndices.length];
    this.wanted = new AdapterEntry[registry.maxLoras()];
    this.leased = new LoadedAdapter[registry.maxLoras()];
    this.bySlot = new LoadedAdapter[registry.maxLoras()];
    this.positions = new int[hostCache];
    this.mapping = new TokenMapping(registry.transfers());
  }

  /**
   * Releases what the batch held and takes the slots of another forward. If it throws, the batch
   * holds nothing.
   *
   * @param namePerToken a loaded adapter, or null or "" for the base model, per token
   * @throws AdapterException if a name is not loaded, there are more distinct adapters than slots,
   *     or the slots stay in use by other batches for longer than the registry waits
   */
  public void reset(List<@Nullable String> namePerToken) {
    begin(namePerToken.size());
    try {
      String last = null;
      int lastPosition = -1;
      for (int t = 0; t < namePerToken.size(); t++) {
        String name = namePerToken.get(t);
        if (name == null || name.isEmpty()) {
          mapping.set(t, -1);
          continue;
        }
        if (!name.equals(last)) {
          last = name;
          lastPosition = position(registry.entry(name));
        }
        mapping.set(t, lastPosition);
      }
      requireSlots();
    } finally {
      clearPositions();
    }
    lease();
  }

  /**
   * Like {@link #reset(List)}, without any allocation that grows with the batch.
   *
   * @param handlePerToken a handle, or {@link AdapterRegistry#BASE}, per token; only read
   * @param numTokens how many entries to use
   * @throws AdapterException likewise
   */
  public void reset(int[] handlePerToken, int numTokens) {
    Objects.checkFromIndexSize(0, numTokens, handlePerToken.length);
    begin(numTokens);
    try {
      int last = AdapterRegistry.BASE;
      int lastPosition = -1;
      for (int t = 0; t < numTokens; t++) {
        int handle = handlePerToken[t];
        if (handle != last) {
          last = handle;
          lastPosition = handle == AdapterRegistry.BASE ? -1 : position(registry.entry(handle));
        }
        mapping.set(t, lastPosition);
      }
      requireSlots();
    } finally {
      clearPositions();
    }
    lease();
  }

  /**
   * What a layer's forward takes. Valid until the batch is released, reset or closed.
   *
   * @param layerIndex index in the model
   * @return the same object every time
   */
  public MoeLoraContext context(int layerIndex) {
    requireLeased();
    int ordinal = Arrays.binarySearch(layerIndices, layerIndex);
    if (ordinal < 0) {
      throw new IllegalArgumentException(
          "layerIndex is "
              + layerIndex
              + ", the registry's MoE layers are "
              + Arrays.toString(layerIndices));
    }
    BatchContext context = contexts[ordinal];
    if (context == null) {
      context = new BatchContext(this, ordinal, null);
      contexts[ordinal] = context;
    }
    return context;
  }

  /** {@return the number of tokens} */
  public int numTokens() {
    requireLeased();
    return mapping.size();
  }

  /** {@return the number of distinct adapters} */
  public int numAdapters() {
    requireLeased();
    return adapters;
  }

  /**
   * {@return the slot of a token, -1 for the base model}
   *
   * @param token {@code 0..numTokens-1}
   */
  public int slot(int token) {
    requireLeased();
    return mapping.get(Objects.checkIndex(token, mapping.size()));
  }

  /**
   * Gives the slots back. The work that reads them must have finished: on a device, after {@link
   * DeviceStream#synchronize()}. Does nothing if the batch holds none.
   */
  public void release() {
    release((Device.@Nullable Fence) null);
  }

  /**
   * Gives the slots back behind everything that has been enqueued on a stream so far, without
   * waiting for it: forwards that read them may still run. What reads them on other streams must
   * have finished. The next {@link #reset(List)} of this batch waits for that work, because the
   * slots of its tokens stay in one place; who wants to prepare a forward while another runs takes
   * turns between two batches. Does nothing if the batch holds none.
   *
   * @param stream of the registry's device
   */
  public void release(DeviceStream stream) {
    Transfers transfers = registry.transfers();
    if (open && transfers != null) {
      mapping.readUntil(transfers.device().fence(stream));
      release(adapters == 0 ? null : transfers.device().fence(stream));
    } else {
      release();
    }
  }

  private void release(Device.@Nullable Fence behind) {
    if (open) {
      open = false;
      int n = adapters;
      adapters = 0;
      if (n > 0) {
        Arrays.fill(bySlot, null);
        Arrays.fill(wanted, null);
        registry.drop(registry.slots().release(leased, n, behind));
        registry.closeDeviceIfIdle();
      }
    }
  }

  /** Releases, and gives back the memory of the mapping. May be called twice. */
  @Override
  public void close() {
    release();
    if (!closed) {
      closed = true;
      mapping.close();
    }
  }

  // ---- for BatchContext ----

  AdapterRegistry registry() {
    return registry;
  }

  @Nullable LoadedAdapter bySlot(int slot) {
    requireLeased();
    return bySlot[slot];
  }

  Tensor mappingTensor() {
    requireLeased();
    return mapping.tensor();
  }

  void awaitFactors(int ordinal, DeviceStream stream) {
    requireLeased();
    for (int i = 0; i < adapters; i++) {
      LoadedAdapter version = leased[i];
      if (version != null) {
        version.await(ordinal, stream);
      }
    }
  }

  boolean hasLora() {
    requireLeased();
    return adapters > 0;
  }

  private void requireLeased() {
    if (!open) {
      throw new IllegalStateException("the adapter batch was released and holds no slots");
    }
  }

  // ---- taking slots ----

  private void begin(int numTokens) {
    if (closed) {
      throw new IllegalStateException("the adapter batch is closed");
    }
    release();
    adapters = 0;
    registry.requireOpen();
    mapping.resize(numTokens);
  }

  /** Where an adapter stands among the distinct ones; past the end of wanted it is only counted. */
  private int position(AdapterEntry entry) {
    int known = positions[entry.index] - 1;
    if (known < 0) {
      known = adapters++;
      positions[entry.index] = known + 1;
      if (known < wanted.length) {
        wanted[known] = entry;
      }
    } else if (known < wanted.length && wanted[known] != entry) {
      throw new AdapterException(
          "an adapter was unloaded while the batch was being made; '"
              + entry.name
              + "' took its place in the host cache");
    }
    return known;
  }

  private void requireSlots() {
    if (adapters > wanted.length) {
      throw new AdapterException(
          "the batch has "
              + adapters
              + " distinct adapters, the registry has "
              + wanted.length
              + " slots (maxLoras); split the batch or raise maxLoras");
    }
  }

  private void clearPositions() {
    Arrays.fill(positions, 0);
  }

  private void lease() {
    int n = adapters;
    boolean done = false;
    try {
      if (n > 0) {
        registry.drop(registry.slots().acquire(wanted, n, leased));
        open = true;
        registry.upload(leased, n);
        mapping.translate(leased);
        for (int i = 0; i < n; i++) {
          LoadedAdapter version = leased[i];
          if (version != null) {
            bySlot[version.slot] = version;
          }
        }
      }
      open = true;
      mapping.publish();
      done = true;
    } finally {
      if (!done) {
        release();
      }
    }
  }
}
