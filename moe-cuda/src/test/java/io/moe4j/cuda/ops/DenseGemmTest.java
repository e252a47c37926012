package io.moe4j.cuda.ops;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.Gpu;
import io.moe4j.cuda.GpuTest;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.Test;

@GpuTest
class DenseGemmTest {
  private static final List<DType> TYPES = List.of(DType.F32, DType.BF16, DType.F16);

  @Test
  void everyPairOfTypesAndEveryMethod() {
    try (Gpu gpu = new Gpu()) {
      DenseGemm gemm = new DenseGemm(gpu.device);
      for (DType x : TYPES) {
        for (DType w : TYPES) {
          // One token, several per block, tiles; depths that vectors divide and that they do not.
          compare(gpu, gemm, x, w, 1, 128, 256, true);
          compare(gpu, gemm, x, w, 13, 7, 1000, false);
          compare(gpu, gemm, x, w, 5, 33, 77, true);
          compare(gpu, gemm, x, w, 100, 130, 72, true);
          compare(gpu, gemm, x, w, 70, 65, 77, false);
        }
      }
    }
  }

  @Test
  void manyTokensOnTheTensorCores() {
    try (Gpu gpu = new Gpu()) {
      DenseGemm gemm = new DenseGemm(gpu.device);
      compare(gpu, gemm, DType.BF16, DType.BF16, 1500, 1700, 136, true);
      compare(gpu, gemm, DType.F16, DType.F16, 1537, 1665, 64, false);
      compare(gpu, gemm, DType.BF16, DType.BF16, 333, 128, 2048, true);
    }
  }

  private static void compare(
      Gpu gpu, DenseGemm gemm, DType xt, DType wt, int t, int n, int k, boolean withBias) {
    Random random = new Random(31L * t + 17L * n + k);
    Tensor x = Gpu.host(xt, Gpu.random(random, t * k, 1f), t, k);
    Tensor w = Gpu.host(wt, Gpu.random(random, n * k, 1f), n, k);
    float[] bias = Gpu.random(random, n, 1f);
    Tensor y = gpu.empty(DType.F32, t, n);
    gemm.run(
        gpu.upload(x),
        gpu.upload(w),
        withBias ? gpu.floats(DType.F32, bias, n) : null,
        y,
        gpu.stream);
    float[] xs = x.toFloats();
    float[] ws = w.toFloats();
    double[] want = new double[t * n];
    for (int i = 0; i < t; i++) {
      for (int j = 0; j < n; j++) {
        double sum = withBias ? bias[j] : 0;
        for (int d = 0; d < k; d++) {
          sum += (double) xs[i * k + d] * ws[j * k + d];
        }
        want[i * n + j] = sum;
      }
    }
    // The inputs are exact in f32. Each of k additions may cut off 2^-23 of a sum that grows like
    // the root of the terms added
    // so far (tensor cores truncate); relative to the result that adds up to about 2^-23 * sqrt(k /
    // 2).
    double tolerance = Math.scalb(Math.sqrt(k), -23);
    Gpu.assertClose(
        gpu.floats(y), want, tolerance, xt + " x " + wt + " [" + t + ", " + n + ", " + k + "]");
  }
}
