package io.moe4j.cuda.ops;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.Gpu;
import io.moe4j.cuda.GpuTest;
import io.moe4j.reference.ReferenceMath;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

@GpuTest
class ElementwiseKernelsTest {
  private static final List<DType> TYPES = List.of(DType.F32, DType.BF16, DType.F16);

  /** Half a unit in the last place of each type, with room for f32's own rounding. */
  private static double tolerance(DType out) {
    return switch (out) {
      case BF16 -> 1.0 / 256;
      case F16 -> 1.0 / 2048;
      default -> 2e-6;
    };
  }

  @ParameterizedTest
  @EnumSource(Activation.Kind.class)
  void activationsOfEveryTypeAndLayout(Activation.Kind kind) {
    Random random = new Random(ElementwiseKernels.code(kind));
    int rows = 7;
    int width = 301;
    try (Gpu gpu = new Gpu()) {
      ElementwiseKernels kernels = new ElementwiseKernels(gpu.device);
      for (Activation a : List.of(Activation.plain(kind), Activation.plain(kind).withLimit(1.5f))) {
        for (DType in : TYPES) {
          for (GateUpLayout layout : GateUpLayout.values()) {
            DType out = TYPES.get(random.nextInt(3));
            int columns = kind.isGated() ? 2 * width : width;
            Tensor x = Gpu.host(in, Gpu.random(random, rows * columns, 2f), rows, columns);
            Tensor y = gpu.empty(out, rows, width);
            kernels.activation(a, gpu.upload(x), layout, y, null, gpu.stream);
            double[] want = new double[rows * width];
            for (int r = 0; r < rows; r++) {
              for (int i = 0; i < width; i++) {
                want[r * width + i] =
                    kind.isGated()
                        ? ReferenceMath.activate(
                            a,
                            x.get(r, layout.index(false, i, width)),
                            x.get(r, layout.index(true, i, width)))
                        : ReferenceMath.activate(a, 0, x.get(r, i));
              }
            }
            Gpu.assertClose(gpu.floats(y), want, tolerance(out), a + " " + in + " -> " + out);
          }
        }
      }
    }
  }

  @Test
  void activationLeavesRowsPastTheCountsAlone() {
    int maxTokens = 4;
    int rows = 3 * maxTokens;
    int width = 40;
    try (Gpu gpu = new Gpu()) {
      float[] x = Gpu.random(new Random(1), rows * width, 1f);
      Tensor y = gpu.empty(DType.F32, rows, width);
      new ElementwiseKernels(gpu.device)
          .activation(
              Activation.RELU2_NO_MUL,
              gpu.floats(DType.F32, x, rows, width),
              GateUpLayout.HALVES,
              y,
              gpu.ints(new int[] {0, 4, 1}, 3),
              gpu.stream);
      float[] got = gpu.floats(y);
      for (int r = 0; r < rows; r++) {
        boolean used = r / maxTokens == 1 || r == 2 * maxTokens;
        assertThat(Float.isNaN(got[r * width])).as("row %d untouched", r).isEqualTo(!used);
      }
    }
  }

  @Test
  void castsRoundToNearestEven() {
    float[] v = Gpu.random(new Random(2), 100_003, 3f);
    v[0] = Float.NaN;
    v[1] = Float.POSITIVE_INFINITY;
    v[2] = -0f;
    try (Gpu gpu = new Gpu()) {
      ElementwiseKernels kernels = new ElementwiseKernels(gpu.device);
      for (DType in : TYPES) {
        for (DType out : TYPES) {
          Tensor x = Gpu.host(in, v, v.length);
          Tensor y = gpu.empty(out, v.length);
          kernels.cast(gpu.upload(x), y, gpu.stream);
          assertThat(gpu.floats(y))
              .as("%s to %s", in, out)
              .isEqualTo(Gpu.host(out, x.toFloats(), v.length).toFloats());
        }
      }
    }
  }

  @Test
  void combineWeightsAndSkipsPairsWithoutExpert() {
    int tokens = 33;
    int k = 5;
    int pairs = tokens * k;
    int experts = 6;
    Random random = new Random(3);
    int[] ids = random.ints((long) tokens * k, -2, 10).toArray();
    int[] map = {0, -1, 1, 2, 3, -1, 4, 5};
    float[] weights = Gpu.random(random, tokens * k, 1f);
    try (Gpu gpu = new Gpu()) {
      ElementwiseKernels kernels = new ElementwiseKernels(gpu.device);
      ExpertRouting routing =
          new ExpertRouting(
              gpu.ints(ids, tokens, k),
              gpu.floats(DType.F32, weights, tokens, k),
              gpu.ints(map, map.length));
      for (DType in : TYPES) {
        for (int width : new int[] {8, 77, 2052}) {
          DType out = TYPES.get(random.nextInt(3));
          Tensor y = Gpu.host(in, Gpu.random(random, pairs * width, 1f), pairs, width);
          Tensor sum = gpu.empty(out, tokens, width);
          boolean weighted = random.nextBoolean();
          kernels.combine(gpu.upload(y), routing, weighted, 0, experts, sum, gpu.stream);
          double[] want = new double[tokens * width];
          float[] ys = y.toFloats();
          for (int p = 0; p < tokens * k; p++) {
            if (ids[p] < 0 || ids[p] >= map.length || map[ids[p]] < 0) {
              continue;
            }
            for (int h = 0; h < width; h++) {
              want[p / k * width + h] += (weighted ? weights[p] : 1.0) * ys[p * width + h];
            }
          }
          Gpu.assertClose(gpu.floats(sum), want, tolerance(out), in + " -> " + out + " " + width);
        }
      }
    }
  }
}
