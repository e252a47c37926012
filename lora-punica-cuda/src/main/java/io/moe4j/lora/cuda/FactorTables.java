package io.moe4j.lora.cuda;

import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.lora.SlotsKey;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaStream;
import io.moe4j.cuda.ops.LeaseCache;
import java.lang.ref.Reference;
import org.jspecify.annotations.Nullable;

/**
 * A table for each layer's slots ({@link MoeLoraContext#slotsKey}), which follows them in place: a
 * captured graph sees whatever adapters come. It goes some time after the last holder of its key.
 * For contexts without a key, which promise nothing, a table for each set of adapters seen lately.
 * One that a captured graph has read stays.
 */
final class FactorTables implements AutoCloseable {
  private static final int KEPT = 8;

  private final CudaDevice device;
  private final LoraKernels kernels;
  private final CudaStream side;
  private final KeyedValues<SlotsKey, FactorTable> keyed = new KeyedValues<>(FactorTable::close);
  private final LeaseCache<FactorTable> exact = new LeaseCache<>(KEPT, FactorTable::close);

  FactorTables(CudaDevice device, LoraKernels kernels) {
    this.device = device;
    this.kernels = kernels;
    this.side = device.newStream();
  }

  /**
   * The table of a context's slots, for one call.
   *
   * @param key of the table; held until the call is enqueued, so that nobody closes the table
   * @param lease of one without a key
   */
  record Use(
      FactorTable table, @Nullable SlotsKey key, LeaseCache.@Nullable Lease<FactorTable> lease)
      implements AutoCloseable {
    /** The call has enqueued all that reads the table. */
    @Override
    public void close() {
      try {
        if (lease != null) {
          lease.close();
        }
      } finally {
        Reference.reachabilityFence(key);
      }
    }
  }

  /** The table of a context's slots, up to date for what follows on a stream. */
  Use of(MoeLoraContext context, DeviceStream stream) {
    SlotsKey key = context.slotsKey();
    if (key == null) {
      LeaseCache.Lease<FactorTable> lease = exact(context, stream);
      return new Use(lease.value(), null, lease);
    }
    boolean captures = CudaStream.isCapturing(stream);
    FactorTable table = keyed.get(key);
    if (table == null) {
      if (!captures) { // inside a capture nothing can be freed
        keyed.closeUnreachable();
      }
      table = keyed.get(key, () -> make(context));
    }
    if (captures) {
      keyed.keep(key);
    }
    table.update(context, stream);
    return new Use(table, key, null);
  }

  private FactorTable make(MoeLoraContext context) {
    return new FactorTable(device, kernels, side, context.maxLoras());
  }

  private synchronized LeaseCache.Lease<FactorTable> exact(
      MoeLoraContext context, DeviceStream stream) {
    LeaseCache.Lease<FactorTable> lease =
        exact.find(t -> t.slots() == context.maxLoras() && t.matches(context));
    if (lease == null) {
      FactorTable fresh = make(context);
      boolean filled = false;
      try {
        fresh.update(context, stream); // refuses what it cannot take, before others are closed
        filled = true;
      } finally {
        if (!filled) {
          fresh.close();
        }
      }
      exact.makeRoom();
      lease = exact.add(fresh);
    }
    boolean done = false;
    try {
      lease.value().update(context, stream);
      if (CudaStream.isCapturing(stream)) {
        lease.keep();
      }
      done = true;
      return lease;
    } finally {
      if (!done) {
        lease.close();
      }
    }
  }

  @Override
  public synchronized void close() {
    keyed.close();
    exact.closeAll();
    side.close();
  }
}
