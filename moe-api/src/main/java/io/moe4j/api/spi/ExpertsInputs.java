package io.moe4j.api.spi;

import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * One call of modular experts. All tensors on the stream's device, contiguous. The caller has
 * checked ids against the number of experts; an implementation must still not read out of bounds
 * for an id it does not know: it treats it as -1.
 *
 * <p>{@code H} is the experts' own width, {@code MoeConfig.expertHiddenSize()}: with a latent
 * projection that is the latent size.
 *
 * @param hidden STANDARD: {@code [T, H]}; BATCHED: {@code [E_local, maxTokens, H]}. F32, BF16 or
 *     F16
 * @param routing ids and weights; null for BATCHED
 * @param expertNumTokens BATCHED: int32 {@code [E_local]}, rows used per expert; null for STANDARD
 * @param output STANDARD: {@code [T, H]}, overwritten with the weighted sum over k (zero for a
 *     token without local experts); BATCHED: {@code [E_local, maxTokens, H]}, rows up to the count
 *     overwritten, unweighted. F32, BF16 or F16; may not overlap {@code hidden}
 * @param link what the exchange that brought the rows offers beyond them; null = nothing
 * @since 0.1.0
 */
public record ExpertsInputs(
    Tensor hidden,
    @Nullable ExpertRouting routing,
    @Nullable Tensor expertNumTokens,
    Tensor output,
    @Nullable ExchangeLink link) {
  /**
   * Checks the components.
   *
   * @param hidden what the experts read
   * @param routing STANDARD only
   * @param expertNumTokens BATCHED only
   * @param output what the experts write
   * @param link of the exchange, or null
   */
  public ExpertsInputs {
    Objects.requireNonNull(hidden, "hidden");
    Objects.requireNonNull(output, "output");
    if ((routing == null) == (expertNumTokens == null)) {
      throw new IllegalArgumentException(
          "give routing (STANDARD) or expertNumTokens (BATCHED), and not both");
    }
    int dims = routing != null ? 2 : 3;
    if (hidden.dims() != dims || !java.util.Arrays.equals(hidden.shape(), output.shape())) {
      throw new IllegalArgumentException(
          "hidden is "
              + hidden
              + " and output "
              + output
              + ", must be alike and have "
              + dims
              + " dimensions");
    }
    if (routing != null && routing.topkIds().size(0) != hidden.size(0)) {
      throw new IllegalArgumentException(
          "topkIds is " + routing.topkIds() + " for " + hidden.size(0) + " tokens");
    }
    if (expertNumTokens != null
        && (expertNumTokens.dtype() != DType.I32
            || expertNumTokens.dims() != 1
            || expertNumTokens.size(0) != hidden.size(0))) {
      throw new IllegalArgumentException(
          "expertNumTokens is " + expertNumTokens + ", must be I32 [" + hidden.size(0) + "]");
    }
  }

  /**
   * Without a link.
   *
   * @param hidden what the experts read
   * @param routing STANDARD only
   * @param expertNumTokens BATCHED only
   * @param output what the experts write
   */
  public ExpertsInputs(
      Tensor hidden,
      @Nullable ExpertRouting routing,
      @Nullable Tensor expertNumTokens,
      Tensor output) {
    this(hidden, routing, expertNumTokens, output, null);
  }

  /**
   * A STANDARD call.
   *
   * @param hidden {@code [T, H]}
   * @param routing ids and weights
   * @param output {@code [T, H]}
   * @return the inputs
   */
  public static ExpertsInputs standard(Tensor hidden, ExpertRouting routing, Tensor output) {
    return new ExpertsInputs(hidden, routing, null, output);
  }

  /**
   * A BATCHED call.
   *
   * @param hidden {@code [E_local, maxTokens, H]}
   * @param expertNumTokens int32 {@code [E_local]}
   * @param output {@code [E_local, maxTokens, H]}
   * @return the inputs
   */
  public static ExpertsInputs batched(Tensor hidden, Tensor expertNumTokens, Tensor output) {
    return new ExpertsInputs(hidden, null, expertNumTokens, output);
  }

  /**
   * {@return the routing of a STANDARD call}
   *
   * @throws IllegalStateException for BATCHED
   */
  public ExpertRouting requireRouting() {
    if (routing == null) {
      throw new IllegalStateException("a BATCHED call has no routing");
    }
    return routing;
  }
}
