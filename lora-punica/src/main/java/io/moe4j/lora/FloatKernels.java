package io.moe4j.lora;

import org.slf4j.LoggerFactory;

/** The two inner loops of a LoRA delta, on float arrays. Stateless. */
interface FloatKernels {
  /**
   * {@code out[outAt + m * outStep] = sum over i of a[i] * x[m * xStep + i]} for {@code m < rows},
   * {@code i < n}.
   */
  void shrink(
      float[] a, int n, float[] x, int xStep, int rows, float[] out, int outAt, int outStep);

  /**
   * {@code out[i] = sum over j of h[hAt + j] * bt[j * step + i]} for {@code i < n}, {@code j <
   * rank}.
   */
  void expand(float[] bt, int step, int n, float[] h, int hAt, int rank, float[] out);

  /** The Vector API's where the JVM has it, plain loops elsewhere. */
  static FloatKernels best() {
    return Holder.BEST;
  }

  /** Decides once. */
  final class Holder {
    private static final FloatKernels BEST = choose();

    private Holder() {}

    private static FloatKernels choose() {
      if (ModuleLayer.boot().findModule("jdk.incubator.vector").isPresent()) {
        return new VectorFloatKernels();
      }
      LoggerFactory.getLogger(FloatKernels.class)
          .info(
              "jdk.incubator.vector is not there, LoRA deltas use plain loops; start java with"
                  + " --add-modules jdk.incubator.vector to make them faster");
      return new ScalarFloatKernels();
    }
  }
}
