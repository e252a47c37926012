package io.moe4j.cuda.ops;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaStream;
import java.util.ArrayList;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * The slot tables of one prepared layer. One for each key of slots ({@link
 * MoeLoraContext#slotsKey}) that was seen lately: a slot that has changed hands is written over in
 * place, so that a captured graph sees the new adapter. Contexts without a key may disagree about a
 * slot while both are in use, so each set of adapters gets a table of its own.
 *
 * <p>Writing happens on a stream of its own, whose rows a call's stream waits for, and cannot
 * happen inside a capture. Safe for several threads.
 *
 * @since 0.2.0
 */
public final class SlotTables implements AutoCloseable {
  private static final int KEPT = 8;

  private record Entry(@Nullable Object key, SlotTable table) {}

  private final CudaDevice device;
  private final ExpertKernels kernels;
  private final MoeConfig config;
  private final int slots;
  private final List<Entry> entries = new ArrayList<>();
  private volatile @Nullable Entry latest;
  private @Nullable CudaStream side;

  /**
   * Makes no table yet.
   *
   * @param device where to run
   * @param kernels where they are
   * @param config of the layer
   * @param slots rows of each table, {@code LoraConfig.maxLoras}
   */
  public SlotTables(CudaDevice device, ExpertKernels kernels, MoeConfig config, int slots) {
    this.device = device;
    this.kernels = kernels;
    this.config = config;
    this.slots = slots;
  }

  /**
   * The table of a context's slots; a comparison a slot when nothing changed.
   *
   * @param context the call's
   * @param stream of the call
   * @return valid while fewer than {@value #KEPT} other keys come
   * @throws IllegalStateException if a row would have to be written and the stream captures
   */
  public SlotTable of(MoeLoraContext context, DeviceStream stream) {
    Entry last = latest;
    SlotTable table = last != null && fits(last, context) ? last.table() : find(context, stream);
    table.await(context, stream);
    return table;
  }

  @SuppressWarnings("ReferenceEquality") // a key is an identity
  private static boolean same(@Nullable Object a, @Nullable Object b) {
    return a == b;
  }

  private static boolean fits(Entry e, MoeLoraContext context) {
    Object key = context.slotsKey();
    return same(e.key(), key)
        && (key == null ? e.table().matches(context) : e.table().shows(context));
  }

  private synchronized SlotTable find(MoeLoraContext context, DeviceStream stream) {
    if (context.maxLoras() > slots) {
      throw new IllegalArgumentException(
          "the context has "
              + context.maxLoras()
              + " slots, the layer was prepared for "
              + slots
              + " (LoraConfig.maxLoras)");
    }
    Entry found = null;
    for (Entry e : entries) {
      if (fits(e, context)) {
        found = e;
      }
    }
    if (found == null) {
      if (CudaStream.isCapturing(stream)) {
        throw new IllegalStateException(
            "adapters have come into slots since the last forward or refresh, which cannot be"
                + " recorded: run the forward once, or refresh the session, before the capture");
      }
      Object key = context.slotsKey();
      found = entry(key, context);
      if (key == null) {
        found.table().fill(context);
      } else {
        found.table().show(context);
      }
    }
    entries.remove(found);
    entries.add(found);
    latest = found;
    return found.table();
  }

  /** The entry to write to. */
  private Entry entry(@Nullable Object key, MoeLoraContext context) {
    for (Entry e : entries) {
      boolean mine =
          key == null ? e.key() == null && e.table().canFill(context) : same(e.key(), key);
      if (mine) {
        return e;
      }
    }
    if (entries.size() == KEPT) {
      // Freeing device memory waits for all work on it.
      entries.removeFirst().table().close();
    }
    CudaStream stream = side;
    if (stream == null) {
      stream = device.newStream();
      side = stream;
    }
    Entry fresh = new Entry(key, new SlotTable(device, kernels, config, slots, stream));
    entries.add(fresh);
    return fresh;
  }

  @Override
  public synchronized void close() {
    latest = null;
    entries.forEach(e -> e.table().close());
    entries.clear();
    if (side != null) {
      side.close();
      side = null;
    }
  }
}
