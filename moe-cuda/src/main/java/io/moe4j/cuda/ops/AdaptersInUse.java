package io.moe4j.cuda.ops;

import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.cuda.CudaStream;

/**
 * What a forward with fused LoRA needs to know of its adapters.
 *
 * @param table address of a {@link SlotTable}; 0 = nothing is added anywhere
 * @param mapping address of int32 slots of the tokens (BATCHED: of the rows, undefined past a
 *     count); 0 = nothing is added anywhere
 * @param slots rows of the table; 0 = nothing is added anywhere
 * @param used slots with factors for this layer
 * @param rank largest of any of them, padded to a page; inside a capture the layer's largest, since
 *     what is recorded may be replayed with any adapter that fits the layer
 * @since 0.2.0
 */
public record AdaptersInUse(long table, long mapping, int slots, int used, int rank) {
  /** Of a forward without LoRA. */
  public static final AdaptersInUse NONE = new AdaptersInUse(0, 0, 0, 0, 0);

  /**
   * Of a forward with adapters.
   *
   * @param table of the context's slots, up to date; in use until the forward is enqueued
   * @param context the call's
   * @param largestRank of the layer, padded to a page
   * @param stream of the call
   * @return what is in use
   */
  public static AdaptersInUse of(
      SlotTable table, MoeLoraContext context, int largestRank, DeviceStream stream) {
    SlotTable.Extent extent = table.extent(context);
    int rank = CudaStream.isCapturing(stream) ? largestRank : extent.rank();
    return rank == 0
        ? NONE
        : new AdaptersInUse(
            table.address(),
            context.tokenLoraMapping().deviceAddress(),
            table.slots(),
            Math.max(1, extent.used()),
            rank);
  }

  /**
   * {@return a rank padded to a page}
   *
   * @param rank of an adapter, or the largest of a layer
   */
  public static int padded(int rank) {
    return Math.ceilDiv(rank, SlotTable.PAGE) * SlotTable.PAGE;
  }
}
