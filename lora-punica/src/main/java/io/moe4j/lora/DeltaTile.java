package io.moe4j.lora;

import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.MemorySegment;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * The arithmetic of one group of pairs, and the scratch for it: rows of x and factors widened to
 * f32, rank vectors and sums in f32, one rounding when y is written. One thread at a time.
 */
final class DeltaTile {
  /** Floats of B that are transposed at once; fits the L2 cache of current processors. */
  private static final int B_TILE = 1 << 15;

  private static final int MIN_COLUMNS = 32;
  private static final int MAX_COLUMNS = 512;

  private final FloatKernels kernels;
  private float[] x = new float[0];
  private float[] a = new float[0];
  private float[] h = new float[0];
  private float[] b = new float[0];
  private float[] bt = new float[0];
  private float[] sums = new float[0];
  private float[] old = new float[0];
  private short[] bits = new short[0];

  DeltaTile(FloatKernels kernels) {
    this.kernels = kernels;
  }

  /**
   * One call's tensors.
   *
   * @param targets in the order of {@code y}
   * @param y where each target's delta goes
   * @param x what all of them read
   * @param weights factor of each pair's delta, null = 1
   * @param add add to y or overwrite
   */
  record Job(
      List<LoraTarget> targets,
      List<PairRows> y,
      PairRows x,
      @Nullable PairRows weights,
      boolean add) {}

  void run(Job job, PairPlan plan, int group) {
    int start = plan.groupStart(group);
    int rows = plan.groupEnd(group) - start;
    int expert = plan.expert(group);
    LoraLayer layer = plan.layer(group);
    reserve(job, plan.maxRank());
    PairRows in = job.x();
    for (int m = 0; m < rows; m++) {
      FloatElements.read(
          in.segment(),
          in.dtype(),
          in.offset(plan.pair(start + m)),
          in.elementStride(),
          in.width(),
          x,
          m * in.width(),
          bits);
    }
    Tensor shrunk = null;
    for (int i = 0; i < job.targets().size(); i++) {
      LoraFactors f = layer.get(job.targets().get(i));
      if (f != null) {
        // Gate and up of a fused adapter share A: shrink once.
        if (shrunk == null || !Tensors.sameView(shrunk, f.a())) {
          shrink(f, expert, rows);
          applyWeights(job, plan, start, rows, f.rank());
          shrunk = f.a();
        }
        expand(f, expert, rows, job.y().get(i), job.add(), plan, start);
      }
    }
  }

  private void reserve(Job job, int maxRank) {
    int in = job.x().width();
    if (x.length < in * PairPlan.GROUP_ROWS) {
      x = new float[in * PairPlan.GROUP_ROWS];
    }
    if (a.length < in) {
      a = new float[in];
    }
    if (h.length < maxRank * PairPlan.GROUP_ROWS) {
      h = new float[maxRank * PairPlan.GROUP_ROWS];
      int tile = Math.max(B_TILE, maxRank * MIN_COLUMNS);
      b = new float[tile];
      bt = new float[tile];
    }
    if (sums.length == 0) {
      sums = new float[MAX_COLUMNS];
      old = new float[MAX_COLUMNS];
    }
    int widest = Math.max(in, Math.max(b.length, MAX_COLUMNS));
    if (bits.length < widest) {
      bits = new short[widest];
    }
  }

  private void shrink(LoraFactors f, int expert, int rows) {
    Tensor t = f.a();
    MemorySegment segment = Tensors.segment(t);
    int bytes = t.dtype().bits() / Byte.SIZE;
    int rank = f.rank();
    int in = f.inFeatures();
    long base = t.byteOffset() + (t.size(0) == 1 ? 0 : expert * t.stride(0) * bytes);
    for (int j = 0; j < rank; j++) {
      FloatElements.read(
          segment, t.dtype(), base + j * t.stride(1) * bytes, t.stride(2) * bytes, in, a, 0, bits);
      kernels.shrink(a, in, x, in, rows, h, j, rank);
    }
  }

  private void applyWeights(Job job, PairPlan plan, int start, int rows, int rank) {
    PairRows weights = job.weights();
    if (weights != null) {
      for (int m = 0; m < rows; m++) {
        float w = weights.segment().get(FloatElements.F32, weights.offset(plan.pair(start + m)));
        for (int j = 0; j < rank; j++) {
          h[m * rank + j] *= w;
        }
      }
    }
  }

  private void expand(
      LoraFactors f, int expert, int rows, PairRows y, boolean add, PairPlan plan, int start) {
    Tensor t = f.b();
    int bytes = t.dtype().bits() / Byte.SIZE;
    int rank = f.rank();
    int out = f.outFeatures();
    long base = t.byteOffset() + (t.size(0) == 1 ? 0 : expert * t.stride(0) * bytes);
    int columns = Math.max(MIN_COLUMNS, Math.min(MAX_COLUMNS, bt.length / rank));
    for (int c = 0; c < out; c += columns) {
      int n = Math.min(columns, out - c);
      transpose(t, base + c * t.stride(1) * bytes, n, rank);
      for (int m = 0; m < rows; m++) {
        kernels.expand(bt, n, n, h, m * rank, rank, sums);
        FloatElements.write(
            y.segment(),
            y.dtype(),
            y.offset(plan.pair(start + m)) + c * y.elementStride(),
            y.elementStride(),
            n,
            sums,
            add,
            old,
            bits);
      }
    }
  }

  /** {@code n} rows of B from {@code offset} on, as {@code bt[j * n + i]}. */
  private void transpose(Tensor t, long offset, int n, int rank) {
    MemorySegment segment = Tensors.segment(t);
    DType dtype = t.dtype();
    int bytes = dtype.bits() / Byte.SIZE;
    long rowStep = t.stride(1) * bytes;
    long rankStep = t.stride(2) * bytes;
    if (t.stride(1) == 1) {
      for (int j = 0; j < rank; j++) {
        FloatElements.read(segment, dtype, offset + j * rankStep, rowStep, n, bt, j * n, bits);
      }
      return;
    }
    if (t.stride(2) == 1 && t.stride(1) == rank) {
      FloatElements.read(segment, dtype, offset, rankStep, n * rank, b, 0, bits);
    } else {
      for (int i = 0; i < n; i++) {
        FloatElements.read(segment, dtype, offset + i * rowStep, rankStep, rank, b, i * rank, bits);
      }
    }
    for (int j = 0; j < rank; j++) {
      for (int i = 0; i < n; i++) {
        bt[j * n + i] = b[i * rank + j];
      }
    }
  }
}
