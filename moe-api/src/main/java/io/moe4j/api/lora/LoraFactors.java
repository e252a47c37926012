package io.moe4j.api.lora;

import io.moe4j.api.tensor.Tensor;

/**
 * One adapter's pair for one target of one layer; {@code delta W[e] = b[e] . a[e]}. The scale is
 * already in {@code b}. Elements are finite, those of routed experts also once they are rounded to
 * the dtype of the layer's weights; an adapter registry checks that, whoever makes contexts without
 * one does. They are F32, BF16 or F16, whatever the weights are. Two targets may share the memory
 * of {@code a} (gate and up of a fused adapter do): a kernel may then shrink once.
 *
 * @param a {@code [E_local, r, in]}, or {@code [1, r, in]} where one A serves all experts, or with
 *     stride 0 along the experts
 * @param b {@code [E_local, out, r]} or {@code [1, out, r]}; any strides. On the host, where
 *     backends read it in place, {@code [E, r, out]} in memory (strides {@code r * out, 1, out}) is
 *     fastest, and what moe-checkpoint loads; devices get a dense copy anyway
 * @since 0.1.0
 */
public record LoraFactors(Tensor a, Tensor b) {
  /**
   * Checks the components.
   *
   * @param a {@code [E or 1, r, in]}
   * @param b {@code [E or 1, out, r]}
   */
  public LoraFactors {
    if (a.dims() != 3 || b.dims() != 3 || a.size(1) != b.size(2) || a.size(1) < 1) {
      throw new IllegalArgumentException(
          "a is " + a + " and b " + b + "; need [E, r, in] and [E, out, r] with r >= 1");
    }
    if (a.size(0) != b.size(0) && a.size(0) != 1 && b.size(0) != 1) {
      throw new IllegalArgumentException(
          "a is " + a + " and b " + b + "; expert sizes must agree or be 1");
    }
  }

  /** {@return {@code r}} */
  public int rank() {
    return Math.toIntExact(a.size(1));
  }

  /** {@return the width read} */
  public int inFeatures() {
    return Math.toIntExact(a.size(2));
  }

  /** {@return the width written} */
  public int outFeatures() {
    return Math.toIntExact(b.size(1));
  }

  /**
   * {@return the number of experts covered: the larger of both expert sizes, 1 if both factors
   * serve all}
   */
  public int numExperts() {
    return Math.toIntExact(Math.max(a.size(0), b.size(0)));
  }

  /**
   * {@return A of one expert, {@code [r, in]}}
   *
   * @param expert local expert, ignored where one A serves all
   */
  public Tensor a(int expert) {
    return a.select(0, a.size(0) == 1 ? 0 : expert);
  }

  /**
   * {@return B of one expert, {@code [out, r]}}
   *
   * @param expert local expert, ignored where one B serves all
   */
  public Tensor b(int expert) {
    return b.select(0, b.size(0) == 1 ? 0 : expert);
  }
}
