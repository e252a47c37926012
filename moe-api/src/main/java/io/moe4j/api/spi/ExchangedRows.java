package io.moe4j.api.spi;

import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * What this rank's experts are to compute, in the exchange's workspace or in the caller's tensors;
 * valid until {@link ExpertExchange#combine} has run.
 *
 * @param hidden STANDARD: {@code [R, H]}; BATCHED: {@code [E_local, R, H]}
 * @param routing STANDARD: global ids, weights and the expert map, {@code [R, K]}; null for BATCHED
 * @param expertNumTokens BATCHED: int32 {@code [E_local]}, rows used per expert; null for STANDARD
 * @param loraMapping int32 {@code [R]} or {@code [E_local, R]}; null without adapters
 * @param link more that the experts may use; null = nothing
 * @since 0.2.0
 */
public record ExchangedRows(
    Tensor hidden,
    @Nullable ExpertRouting routing,
    @Nullable Tensor expertNumTokens,
    @Nullable Tensor loraMapping,
    @Nullable ExchangeLink link) {
  /**
   * Without a link.
   *
   * @param hidden STANDARD: {@code [R, H]}; BATCHED: {@code [E_local, R, H]}
   * @param routing STANDARD: global ids, weights and the expert map
   * @param expertNumTokens BATCHED: int32 {@code [E_local]}
   * @param loraMapping int32 {@code [R]} or {@code [E_local, R]}; null without adapters
   */
  public ExchangedRows(
      Tensor hidden,
      @Nullable ExpertRouting routing,
      @Nullable Tensor expertNumTokens,
      @Nullable Tensor loraMapping) {
    this(hidden, routing, expertNumTokens, loraMapping, null);
  }

  /**
   * {@return the experts' call}
   *
   * @param output of the shape of {@link #hidden}
   */
  public ExpertsInputs inputs(Tensor output) {
    return new ExpertsInputs(hidden, routing, expertNumTokens, output, link);
  }
}
