package io.moe4j.lora;

/**
 * Plain loops: independent sums where order is free, and a row at a time where the JIT vectorises.
 */
final class ScalarFloatKernels implements FloatKernels {
  @Override
  public void shrink(
      float[] a, int n, float[] x, int xStep, int rows, float[] out, int outAt, int outStep) {
    for (int m = 0; m < rows; m++) {
      int base = m * xStep;
      float s0 = 0;
      float s1 = 0;
      float s2 = 0;
      float s3 = 0;
      int i = 0;
      for (; i < n - 3; i += 4) {
        s0 += a[i] * x[base + i];
        s1 += a[i + 1] * x[base + i + 1];
        s2 += a[i + 2] * x[base + i + 2];
        s3 += a[i + 3] * x[base + i + 3];
      }
      for (; i < n; i++) {
        s0 += a[i] * x[base + i];
      }
      out[outAt + m * outStep] = (s0 + s1) + (s2 + s3);
    }
  }

  @Override
  public void expand(float[] bt, int step, int n, float[] h, int hAt, int rank, float[] out) {
    float first = h[hAt];
    for (int i = 0; i < n; i++) {
      out[i] = first * bt[i];
    }
    for (int j = 1; j < rank; j++) {
      float hj = h[hAt + j];
      int base = j * step;
      for (int i = 0; i < n; i++) {
        out[i] += hj * bt[base + i];
      }
    }
  }
}
