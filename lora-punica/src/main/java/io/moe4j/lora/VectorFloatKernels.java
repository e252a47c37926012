package io.moe4j.lora;

import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.VectorSpecies;

/**
 * The same with the Vector API, at the machine's preferred width. Loaded only where that is there.
 */
final class VectorFloatKernels implements FloatKernels {
  private static final VectorSpecies<Float> S = FloatVector.SPECIES_PREFERRED;
  private static final int W = S.length();

  @Override
  public void shrink(
      float[] a, int n, float[] x, int xStep, int rows, float[] out, int outAt, int outStep) {
    int m = 0;
    for (; m < rows - 3; m += 4) {
      shrink4(a, n, x, m * xStep, xStep, out, outAt + m * outStep, outStep);
    }
    for (; m < rows; m++) {
      out[outAt + m * outStep] = dot(a, n, x, m * xStep);
    }
  }

  /** Four rows of x share every load of a. */
  private static void shrink4(
      float[] a, int n, float[] x, int x0, int xStep, float[] out, int outAt, int outStep) {
    int x1 = x0 + xStep;
    int x2 = x1 + xStep;
    int x3 = x2 + xStep;
    FloatVector s0 = FloatVector.zero(S);
    FloatVector s1 = s0;
    FloatVector s2 = s0;
    FloatVector s3 = s0;
    int bound = S.loopBound(n);
    int i = 0;
    for (; i < bound; i += W) {
      FloatVector va = FloatVector.fromArray(S, a, i);
      s0 = va.fma(FloatVector.fromArray(S, x, x0 + i), s0);
      s1 = va.fma(FloatVector.fromArray(S, x, x1 + i), s1);
      s2 = va.fma(FloatVector.fromArray(S, x, x2 + i), s2);
      s3 = va.fma(FloatVector.fromArray(S, x, x3 + i), s3);
    }
    float t0 = VectorSum.sum(s0);
    float t1 = VectorSum.sum(s1);
    float t2 = VectorSum.sum(s2);
    float t3 = VectorSum.sum(s3);
    for (; i < n; i++) {
      t0 += a[i] * x[x0 + i];
      t1 += a[i] * x[x1 + i];
      t2 += a[i] * x[x2 + i];
      t3 += a[i] * x[x3 + i];
    }
    out[outAt] = t0;
    out[outAt + outStep] = t1;
    out[outAt + 2 * outStep] = t2;
    out[outAt + 3 * outStep] = t3;
  }

  private static float dot(float[] a, int n, float[] x, int at) {
    FloatVector s0 = FloatVector.zero(S);
    FloatVector s1 = s0;
    FloatVector s2 = s0;
    FloatVector s3 = s0;
    int i = 0;
    for (; i <= n - 4 * W; i += 4 * W) {
      s0 = FloatVector.fromArray(S, a, i).fma(FloatVector.fromArray(S, x, at + i), s0);
      s1 = FloatVector.fromArray(S, a, i + W).fma(FloatVector.fromArray(S, x, at + i + W), s1);
      s2 =
          FloatVector.fromArray(S, a, i + 2 * W)
              .fma(FloatVector.fromArray(S, x, at + i + 2 * W), s2);
      s3 =
          FloatVector.fromArray(S, a, i + 3 * W)
              .fma(FloatVector.fromArray(S, x, at + i + 3 * W), s3);
    }
    float sum = VectorSum.sum(s0.add(s1).add(s2.add(s3)));
    for (; i < n; i++) {
      sum += a[i] * x[at + i];
    }
    return sum;
  }

  @Override
  public void expand(float[] bt, int step, int n, float[] h, int hAt, int rank, float[] out) {
    int i = 0;
    for (; i <= n - 4 * W; i += 4 * W) {
      FloatVector s0 = FloatVector.zero(S);
      FloatVector s1 = s0;
      FloatVector s2 = s0;
      FloatVector s3 = s0;
      for (int j = 0; j < rank; j++) {
        FloatVector hj = FloatVector.broadcast(S, h[hAt + j]);
        int at = j * step + i;
        s0 = hj.fma(FloatVector.fromArray(S, bt, at), s0);
        s1 = hj.fma(FloatVector.fromArray(S, bt, at + W), s1);
        s2 = hj.fma(FloatVector.fromArray(S, bt, at + 2 * W), s2);
        s3 = hj.fma(FloatVector.fromArray(S, bt, at + 3 * W), s3);
      }
      s0.intoArray(out, i);
      s1.intoArray(out, i + W);
      s2.intoArray(out, i + 2 * W);
      s3.intoArray(out, i + 3 * W);
    }
    for (; i < n; i++) {
      float sum = 0;
      for (int j = 0; j < rank; j++) {
        sum += h[hAt + j] * bt[j * step + i];
      }
      out[i] = sum;
    }
  }
}
