package io.moe4j.backend.cpu;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.SharedExpertConfig;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.SharedExpertWeights;
import io.moe4j.api.weights.Weight;
import io.moe4j.reference.QuantizeActivation;
import io.moe4j.reference.ReferenceMoe;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import org.jspecify.annotations.Nullable;

/**
 * The shared expert with activations quantised as the checkpoint means them, in float64 and slow:
 * what a layer on the reference backend needs, the only one here that does so.
 *
 * @param config its config
 * @param weights its weights without the gate on its output, which is applied elsewhere
 */
record SharedAsQuantised(SharedExpertConfig config, SharedExpertWeights weights) {
  /**
   * {@return what computes it; null where activations stay as they are}
   *
   * @throws IllegalArgumentException if a weight lacks the scale that its scheme needs
   */
  static @Nullable SharedAsQuantised of(MoeConfig layer, @Nullable SharedExpertWeights weights) {
    if (weights == null
        || !layer.quantizedActivations()
        || weights.mlp().projections().stream().allMatch(w -> w.scheme().activations().isNone())) {
      return null;
    }
    for (Weight w : weights.mlp().projections()) {
      QuantizeActivation.requireScale(w);
    }
    return new SharedAsQuantised(
        layer.sharedExpert().orElseThrow(), new SharedExpertWeights(weights.mlp(), null));
  }

  /**
   * Writes its output.
   *
   * @param hidden {@code [T, H]}
   * @param lora the batch's adapters
   * @param output F32 {@code [T, H]}
   */
  void run(Tensor hidden, @Nullable MoeLoraContext lora, MemorySegment output) {
    long width = hidden.size(1);
    for (long t = 0; t < hidden.size(0); t++) {
      double[] y =
          ReferenceMoe.sharedExpert(
              config,
              weights,
              hidden.select(0, t).toDoubles(),
              ReferenceMoe.adapter(lora, t),
              true);
      for (int h = 0; h < width; h++) {
        output.set(ValueLayout.JAVA_FLOAT_UNALIGNED, (t * width + h) * Float.BYTES, (float) y[h]);
      }
    }
  }
}
