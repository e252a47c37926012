package io.moe4j.backend.triton;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.spi.DeviceStream;
import io.moe4j.cuda.CudaDevice;
import java.util.ArrayList;
import java.util.List;

/**
 * The slot tables of one prepared layer, one for each set of adapters that was seen lately: calls
 * that disagree about a slot may run at once. An adapter that comes into an empty slot is written
 * into the table that is there, so a captured graph sees it; one that replaces another gets a new
 * table, so that work in flight keeps the old one, and a graph must be captured again. Both are
 * rare, wait for a small copy, and cannot happen inside a capture.
 */
final class SlotTables implements AutoCloseable {
  private static final int KEPT = 8;

  private final CudaDevice device;
  private final TritonKernels kernels;
  private final MoeConfig config;
  private final int slots;
  private final List<SlotTable> tables = new ArrayList<>();
  private volatile SlotTable latest;

  SlotTables(CudaDevice device, TritonKernels kernels, MoeConfig config, int slots) {
    this.device = device;
    this.kernels = kernels;
    this.config = config;
    this.slots = slots;
    this.latest = new SlotTable(device, kernels, config, slots);
    tables.add(latest);
  }

  /**
   * The table of a context's slots; a comparison a slot when nothing changed.
   *
   * @param context the call's
   * @param stream of the call
   * @return valid while fewer than {@value #KEPT} other sets come
   */
  SlotTable of(MoeLoraContext context, DeviceStream stream) {
    SlotTable last = latest;
    return last.matches(context) ? last : find(context, stream);
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
    SlotTable found = null;
    for (SlotTable t : tables) {
      if (t.matches(context)) {
        found = t;
      }
    }
    if (found == null) {
      found = fillable(context);
      found.fill(context, stream);
    }
    tables.remove(found);
    tables.add(found);
    latest = found;
    return found;
  }

  private SlotTable fillable(MoeLoraContext context) {
    for (SlotTable t : tables) {
      if (t.canFill(context)) {
        return t;
      }
    }
    if (tables.size() == KEPT) {
      // Freeing device memory waits for all work on it.
      tables.removeFirst().close();
    }
    SlotTable fresh = new SlotTable(device, kernels, config, slots);
    tables.add(fresh);
    return fresh;
  }

  @Override
  public synchronized void close() {
    tables.forEach(SlotTable::close);
    tables.clear();
  }
}
