package io.moe4j.api.config;

/**
 * How tokens reach the experts.
 *
 * @since 0.1.0
 */
public enum ActivationFormat {
  /** {@code [T, H]} with topk ids and weights {@code [T, K]}; the experts weight and sum. */
  STANDARD,
  /**
   * {@code [E_local, maxTokens, H]} with a count per expert; the exchange that
   * dispatched the tokens weights and sums.
   */
  BATCHED
}
