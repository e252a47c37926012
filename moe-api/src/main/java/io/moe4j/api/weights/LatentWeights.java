package io.moe4j.api.weights;

import io.moe4j.api.tensor.Tensor;

/**
 * Projections around the experts (nemotron_h): experts read {@code in . x} and the sum of their
 * outputs goes through {@code out}.
 *
 * @param in {@code [D, H]}
 * @param out {@code [H, D]}
 * @since 0.1.0
 */
public record LatentWeights(Tensor in, Tensor out) {
  /**
   * Checks the components.
   *
   * @param in {@code [D, H]}
   * @param out {@code [H, D]}
   */
  public LatentWeights {
    if (in.dims() != 2
        || out.dims() != 2
        || in.size(0) != out.size(1)
        || in.size(1) != out.size(0)) {
      throw new IllegalArgumentException(
          "latent projections are " + in + " and " + out + ", must be [D, H] and [H, D]");
    }
  }
}
