package io.moe4j.backend.marlin;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.DeviceWeights;
import org.jspecify.annotations.Nullable;

/**
 * The matrices of one product of all experts on the device, as {@code tile.cuh} says: for each
 * expert one, or gate and up.
 *
 * @param layout of each
 * @param each matrices an expert
 * @param codes bytes
 * @param ratios F16, or nothing
 * @param zeros 16-bit integers, or nothing
 * @param channels F32
 * @param fine whether ratios may have more bits than a BF16 has
 * @param orders I32 {@code [E, in]}, which input of x each input of the kernels is, -1 = none; null
 *     without act-order
 */
record PackedMatrices(
    PackedLayout layout,
    int each,
    Tensor codes,
    Tensor ratios,
    Tensor zeros,
    Tensor channels,
    boolean fine,
    @Nullable Tensor orders) {
  /** Room for them; contents undefined. */
  static PackedMatrices allocate(
      DeviceWeights memory,
      PackedLayout layout,
      int experts,
      int each,
      boolean fine,
      boolean ordered) {
    long n = (long) experts * each;
    boolean ratios = layout.groupsAChunk() > 0;
    return new PackedMatrices(
        layout,
        each,
        memory.allocate(DType.U8, n * layout.codeBytes()),
        memory.allocate(DType.U8, ratios ? n * layout.ratioBytes() : 0),
        memory.allocate(DType.U8, layout.zeroPoints() ? n * layout.ratioBytes() : 0),
        memory.allocate(DType.U8, n * layout.channelBytes()),
        fine,
        ordered ? memory.allocate(DType.I32, experts, layout.in()) : null);
  }

  /** {@return address of a matrix's codes} */
  long codes(int expert, int matrix) {
    return codes.deviceAddress() + index(expert, matrix) * layout.codeBytes();
  }

  /** {@return address of a matrix's ratios; 0 without} */
  long ratios(int expert, int matrix) {
    return layout.groupsAChunk() == 0
        ? 0
        : ratios.deviceAddress() + index(expert, matrix) * layout.ratioBytes();
  }

  /** {@return address of a matrix's zero points; 0 without} */
  long zeros(int expert, int matrix) {
    return layout.zeroPoints()
        ? zeros.deviceAddress() + index(expert, matrix) * layout.ratioBytes()
        : 0;
  }

  /** {@return address of a matrix's channel scales} */
  long channels(int expert, int matrix) {
    return channels.deviceAddress() + index(expert, matrix) * layout.channelBytes();
  }

  private long index(int expert, int matrix) {
    return (long) expert * each + matrix;
  }
}
