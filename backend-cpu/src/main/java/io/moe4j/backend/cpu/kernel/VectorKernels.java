package io.moe4j.backend.cpu.kernel;

import static java.util.Objects.requireNonNull;

import io.moe4j.api.config.Activation;
import io.moe4j.api.tensor.DType;
import java.lang.foreign.MemorySegment;
import java.util.EnumMap;
import java.util.List;
import java.util.Map;
import jdk.incubator.vector.VectorSpecies;

/**
 * The Vector API implementation, at the width that the processor prefers. Only this class and its
 * package-private helpers mention {@code jdk.incubator.vector}; {@link KernelSelection} touches
 * them only where that module is there.
 */
final class VectorKernels implements Kernels {
  private static final VectorSpecies<Float> F = VectorWidth.F;
  private static final int VL = F.length();

  private final Kernels scalar = KernelSelection.scalar();
  private final Map<DType, BySegmentClass<TypedKernels>> typed =
      byType(VectorTyped.class, TypedKernels.class);
  private final Map<DType, BySegmentClass<ExpandKernel>> expands =
      byType(VectorExpand.class, ExpandKernel.class);

  /** A template's objects for one dtype, made when a class of segments is first seen. */
  private static final class BySegmentClass<T> extends ClassValue<T> {
    private final Class<? extends T> template;
    private final Class<T> type;
    private final DType dtype;

    BySegmentClass(Class<? extends T> template, Class<T> type, DType dtype) {
      this.template = template;
      this.type = type;
      this.dtype = dtype;
    }

    @Override
    protected T computeValue(Class<?> memory) {
      return new VectorTemplate(dtype, memory).define(template, type);
    }
  }

  private static <T> Map<DType, BySegmentClass<T>> byType(
      Class<? extends T> template, Class<T> type) {
    Map<DType, BySegmentClass<T>> all = new EnumMap<>(DType.class);
    for (DType dtype : List.of(DType.F32, DType.BF16, DType.F16)) {
      all.put(dtype, new BySegmentClass<>(template, type, dtype));
    }
    return all;
  }

  private static <T> T get(Map<DType, BySegmentClass<T>> all, DType dtype, MemorySegment kind) {
    BySegmentClass<T> of = all.get(ScalarKernels.requireFloat(dtype));
    return requireNonNull(of).get(kind.getClass());
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
  public TypedKernels forType(DType dtype, MemorySegment kind) {
    return get(typed, dtype, kind);
  }

  @Override
  public ExpandKernel expandOf(DType dtype, MemorySegment kind) {
    return get(expands, dtype, kind);
  }

  @Override
  public void panel(
      float[] w, int w0, MemorySegment x, long xOffset, int vectors, int k, float[] c, int c0) {
    if (x.getClass() == SegmentClass.NATIVE) {
      VectorPanel.multiply(w, w0, x, xOffset, vectors, k, c, c0);
    } else {
      scalar.panel(w, w0, x, xOffset, vectors * VL, k, c, c0);
    }
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
  public void transpose(
      MemorySegment src,
      long srcOffset,
      long srcStride,
      float[] turned,
      MemorySegment dst,
      long dstOffset,
      long dstStride,
      int first,
      int jump,
      int rows) {
    VectorTranspose.block(
        src, srcOffset, srcStride, turned, dst, dstOffset, dstStride, first, jump, rows);
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
    int bound = 0;
    if (up.getClass() == SegmentClass.NATIVE
        && dst.getClass() == SegmentClass.NATIVE
        && (!gated || gate.getClass() == SegmentClass.NATIVE)) {
      bound = F.loopBound(n);
      VectorActivation.apply(activation, gate, gateOffset, up, upOffset, dst, dstOffset, bound);
    }
    for (int i = bound; i < n; i++) {
      float g = gated ? gate.get(ScalarKernels.F32, gateOffset + 4L * i) : 0f;
      float u = up.get(ScalarKernels.F32, upOffset + 4L * i);
      dst.set(
          ScalarKernels.F32, dstOffset + 4L * i, (float) ScalarActivation.apply(activation, g, u));
    }
  }
}
