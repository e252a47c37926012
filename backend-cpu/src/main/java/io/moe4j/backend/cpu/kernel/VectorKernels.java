package io.moe4j.backend.cpu.kernel;

import io.moe4j.api.config.Activation;
import io.moe4j.api.tensor.DType;
import java.lang.foreign.MemorySegment;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.VectorSpecies;

/**
 * The Vector API implementation, at the width that the processor prefers. Only this class and its
 * package-private helpers mention {@code jdk.incubator.vector}; {@link KernelSelection} touches
 * them only where that module is there.
 */
final class VectorKernels implements Kernels {
  private static final VectorSpecies<Float> F = FloatVector.SPECIES_PREFERRED;
  private static final int VL = F.length();

  private final TypedKernels f32 =
      VectorTemplate.of(VectorTyped.class, TypedKernels.class, DType.F32);
  private final TypedKernels bf16 =
      VectorTemplate.of(VectorTyped.class, TypedKernels.class, DType.BF16);
  private final TypedKernels f16 =
      VectorTemplate.of(VectorTyped.class, TypedKernels.class, DType.F16);

  private final ExpandKernel expandF32 = expand(DType.F32);
  private final ExpandKernel expandBf16 = expand(DType.BF16);
  private final ExpandKernel expandF16 = expand(DType.F16);

  private static ExpandKernel expand(DType dtype) {
    return VectorTemplate.of(VectorExpand.class, ExpandKernel.class, dtype);
  }

  @Override
  public String description() {
    return "Vector API, " + F.vectorBitSize() + " bits";
  }

  @Override
  public int lanes() {
    return VL;
  }

  @Override
  public TypedKernels forType(DType dtype) {
    return switch (ScalarKernels.requireFloat(dtype)) {
      case BF16 -> bf16;
      case F16 -> f16;
      default -> f32;
    };
  }

  @Override
  public ExpandKernel expandOf(DType dtype) {
    return switch (ScalarKernels.requireFloat(dtype)) {
      case BF16 -> expandBf16;
      case F16 -> expandF16;
      default -> expandF32;
    };
  }

  @Override
  public void panel(
      float[] w, int w0, MemorySegment x, long xOffset, int vectors, int k, float[] c, int c0) {
    VectorPanel.multiply(w, w0, x, xOffset, vectors, k, c, c0);
  }

  @Override
  public void rows(
      float[] w,
      int w0,
      int rows,
      float[] x,
      int tokens,
      int k,
      MemorySegment out,
      long outOffset,
      long outStride,
      boolean add) {
    VectorRows.multiply(w, w0, rows, x, tokens, k, out, outOffset, outStride, add);
  }

  @Override
  public void transpose(
      float[] src,
      int at,
      int stride,
      MemorySegment dst,
      long dstOffset,
      long dstStride,
      int rows,
      int columns) {
    VectorTranspose.block(src, at, stride, dst, dstOffset, dstStride, rows, columns);
  }

  @Override
  public void transposeAdd(
      MemorySegment src,
      long srcOffset,
      long srcStride,
      int tokens,
      float[] turned,
      float[] dst,
      int to,
      int dstStride,
      int first,
      int jump,
      int rows) {
    VectorTranspose.blockAdd(
        src, srcOffset, srcStride, tokens, turned, dst, to, dstStride, first, jump, rows);
  }

  @Override
  public void activate(
      Activation activation,
      MemorySegment gate,
      long gateOffset,
      MemorySegment up,
      long upOffset,
      MemorySegment dst,
      long dstOffset,
      int n) {
    boolean gated = activation.isGated();
    int bound = F.loopBound(n);
    VectorActivation.apply(activation, gate, gateOffset, up, upOffset, dst, dstOffset, bound);
    for (int i = bound; i < n; i++) {
      float g = gated ? gate.get(ScalarKernels.F32, gateOffset + 4L * i) : 0f;
      float u = up.get(ScalarKernels.F32, upOffset + 4L * i);
      dst.set(
          ScalarKernels.F32, dstOffset + 4L * i, (float) ScalarActivation.apply(activation, g, u));
    }
  }
}
