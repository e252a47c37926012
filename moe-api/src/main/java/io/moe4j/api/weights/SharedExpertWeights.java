package io.moe4j.api.weights;

import io.moe4j.api.tensor.Tensor;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * The dense MLP beside the routed experts.
 *
 * @param mlp gate, up, down in the shapes of an expert: {@code [I_s, H]}, {@code [I_s, H]}, {@code
 *     [H, I_s]}
 * @param sigmoidGate {@code [1, H]}, or null where the output is not gated
 * @since 0.1.0
 */
public record SharedExpertWeights(ExpertWeights.Expert mlp, @Nullable Tensor sigmoidGate) {
  /**
   * Checks the components.
   *
   * @param mlp the MLP
   * @param sigmoidGate {@code [1, H]} or null
   */
  public SharedExpertWeights {
    Objects.requireNonNull(mlp, "mlp");
    if (sigmoidGate != null
        && (sigmoidGate.dims() != 2
            || sigmoidGate.size(0) != 1
            || sigmoidGate.size(1) != mlp.up().in())) {
      throw new IllegalArgumentException(
          "sigmoidGate is " + sigmoidGate + ", must be [1, " + mlp.up().in() + "]");
    }
  }
}
