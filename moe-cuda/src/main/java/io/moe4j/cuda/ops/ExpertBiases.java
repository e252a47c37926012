package io.moe4j.cuda.ops;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.cuda.DeviceWeights;
import java.util.function.Function;
import org.jspecify.annotations.Nullable;

/**
 * The biases of a layer's experts on the device, F32, with zeros where an expert has none and
 * behind the layer's own sizes where those are padded.
 *
 * @param first {@code [E, 2I]} with gates before ups, without gate {@code [E, I]}; null if no
 *     expert has any
 * @param second {@code [E, H]}; null if no expert has any
 * @since 0.2.0
 */
public record ExpertBiases(@Nullable Tensor first, @Nullable Tensor second) {
  /**
   * Uploads them.
   *
   * @param memory that owns them
   * @param config of the layer; without {@link MoeConfig#expertBias} there are none
   * @param weights of the layer
   * @param sizes padded
   * @return the tensors
   */
  public static ExpertBiases of(
      DeviceWeights memory, MoeConfig config, ExpertWeights weights, PaddedSizes sizes) {
    if (!config.expertBias()) {
      return new ExpertBiases(null, null);
    }
    boolean gated = config.activation().isGated();
    int inter = sizes.intermediate();
    int width = gated ? Math.multiplyExact(2, inter) : inter;
    float[] all = new float[Math.multiplyExact(weights.numExperts(), width)];
    boolean any = gated && gather(all, 0, width, weights, ExpertWeights.Expert::gateBias);
    any |= gather(all, gated ? inter : 0, width, weights, ExpertWeights.Expert::upBias);
    Tensor first = any ? memory.floats(Tensor.ofFloats(all, weights.numExperts(), width)) : null;
    int hidden = sizes.hidden();
    float[] down = new float[Math.multiplyExact(weights.numExperts(), hidden)];
    Tensor second =
        gather(down, 0, hidden, weights, ExpertWeights.Expert::downBias)
            ? memory.floats(Tensor.ofFloats(down, weights.numExperts(), hidden))
            : null;
    return new ExpertBiases(first, second);
  }

  private static boolean gather(
      float[] all,
      int at,
      int width,
      ExpertWeights weights,
      Function<ExpertWeights.Expert, @Nullable Tensor> part) {
    boolean any = false;
    for (int e = 0; e < weights.numExperts(); e++) {
      Tensor t = part.apply(weights.expert(e));
      if (t != null) {
        float[] values = t.toFloats();
        System.arraycopy(values, 0, all, e * width + at, values.length);
        any = true;
      }
    }
    return any;
  }
}
