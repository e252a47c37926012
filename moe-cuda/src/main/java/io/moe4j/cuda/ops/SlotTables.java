package io.moe4j.cuda.ops;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaStream;
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

  /**
   * The table of a context's slots, for one call.
   *
   * @since 0.2.0
   */
  public static final class Use implements AutoCloseable {
    private final LeaseCache.Lease<Entry> lease;

    private Use(LeaseCache.Lease<Entry> lease) {
      this.lease = lease;
    }

    /** {@return the table; stays where it is until {@link #close}} */
    public SlotTable table() {
      return lease.value().table();
    }

    /** The call has enqueued all that reads the table. */
    @Override
    public void close() {
      lease.close();
    }
  }

  private final CudaDevice device;
  private final ExpertKernels kernels;
  private final MoeConfig config;
  private final int slots;
  private final LeaseCache<Entry> entries = new LeaseCache<>(KEPT, e -> e.table().close());
  private volatile LeaseCache.@Nullable Lease<Entry> latest;
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
   * The table of a context's slots; a comparison a slot when nothing changed. What a captured graph
   * has read stays until this is closed.
   *
   * @param context the call's
   * @param stream of the call
   * @return to be closed once the call is enqueued
   * @throws IllegalStateException if a row would have to be written and the stream captures
   */
  public Use of(MoeLoraContext context, DeviceStream stream) {
    LeaseCache.Lease<Entry> last = latest;
    LeaseCache.Lease<Entry> lease =
        last != null && fits(last.value(), context) && last.begin() ? last : find(context, stream);
    boolean done = false;
    try {
      if (CudaStream.isCapturing(stream)) {
        lease.keep();
      }
      lease.value().table().await(context, stream);
      done = true;
      return new Use(lease);
    } finally {
      if (!done) {
        lease.close();
      }
    }
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

  private synchronized LeaseCache.Lease<Entry> find(MoeLoraContext context, DeviceStream stream) {
    if (context.maxLoras() > slots) {
      throw new IllegalArgumentException(
          "the context has "
              + context.maxLoras()
              + " slots, the layer was prepared for "
              + slots
              + " (LoraConfig.maxLoras)");
    }
    LeaseCache.Lease<Entry> found = entries.find(e -> fits(e, context));
    if (found == null) {
      if (CudaStream.isCapturing(stream)) {
        throw new IllegalStateException(
            "adapters have come into slots since the last forward or refresh, which cannot be"
                + " recorded: run the forward once, or refresh the session, before the capture");
      }
      found = written(context);
    }
    latest = found;
    return found;
  }

  private LeaseCache.Lease<Entry> written(MoeLoraContext context) {
    Object key = context.slotsKey();
    LeaseCache.Lease<Entry> lease =
        entries.find(
            e -> key == null ? e.key() == null && e.table().canFill(context) : same(e.key(), key));
    if (lease == null) {
      entries.makeRoom();
      CudaStream stream = side;
      if (stream == null) {
        stream = device.newStream();
        side = stream;
      }
      lease = entries.add(new Entry(key, new SlotTable(device, kernels, config, slots, stream)));
    }
    boolean done = false;
    try {
      if (key == null) {
        lease.value().table().fill(context);
      } else {
        lease.value().table().show(context);
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
    latest = null;
    entries.closeAll();
    if (side != null) {
      side.close();
      side = null;
    }
  }
}
