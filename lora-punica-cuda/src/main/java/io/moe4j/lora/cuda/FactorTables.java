package io.moe4j.lora.cuda;

import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaStream;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ConcurrentHashMap;

/**
 * A table for each layer's slots ({@link MoeLoraContext#slotsKey}), which follows them in place: a
 * captured graph sees whatever adapters come. For contexts without a key, which promise nothing, a
 * table for each set of adapters seen lately.
 */
final class FactorTables implements AutoCloseable {
  private static final int KEPT = 8;

  private final CudaDevice device;
  private final LoraKernels kernels;
  private final CudaStream side;
  private final ConcurrentHashMap<Object, FactorTable> keyed = new ConcurrentHashMap<>();
  private final List<FactorTable> exact = new ArrayList<>();

  FactorTables(CudaDevice device, LoraKernels kernels) {
    this.device = device;
    this.kernels = kernels;
    this.side = device.newStream();
  }

  /** The table of a context's slots, up to date for what follows on a stream. */
  FactorTable of(MoeLoraContext context, DeviceStream stream) {
    Object key = context.slotsKey();
    if (key == null) {
      return exact(context, stream);
    }
    FactorTable table = keyed.get(key);
    if (table == null) {
      table = keyed.computeIfAbsent(key, k -> make(context));
    }
    table.update(context, stream);
    return table;
  }

  private FactorTable make(MoeLoraContext context) {
    return new FactorTable(device, kernels, side, context.maxLoras());
  }

  private synchronized FactorTable exact(MoeLoraContext context, DeviceStream stream) {
    for (int i = exact.size() - 1; i >= 0; i--) {
      FactorTable t = exact.get(i);
      if (t.slots() == context.maxLoras() && t.matches(context)) {
        exact.remove(i);
        exact.add(t);
        t.update(context, stream);
        return t;
      }
    }
    if (exact.size() == KEPT) {
      // Freeing device memory waits for all work on it.
      exact.removeFirst().close();
    }
    FactorTable fresh = make(context);
    boolean done = false;
    try {
      fresh.update(context, stream);
      done = true;
    } finally {
      if (!done) {
        fresh.close();
      }
    }
    exact.add(fresh);
    return fresh;
  }

  @Override
  public synchronized void close() {
    keyed.values().forEach(FactorTable::close);
    keyed.clear();
    exact.forEach(FactorTable::close);
    exact.clear();
    side.close();
  }
}
