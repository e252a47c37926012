package io.moe4j.backend.flashinfer;

import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.Weight;
import java.util.Objects;

/**
 * The scales that each expert has beside those of groups, FP8 per tensor and NVFP4: the kernels
 * compute {@code out1 = a * up * silu(b * gate)} of raw products and code it, then {@code out2 = c
 * * down}. So gate and up keep scales of their own. Hidden states are coded once for all experts,
 * so their scale is the largest that any expert's gate or up asks for. The tensors are their
 * collection's.
 */
final class TrtllmTensorScales {
  private final MatrixScales scales;
  private final Tensor input;
  private final Tensor up;
  private final Tensor gate;
  private final Tensor down;

  /**
   * @param weights with input scales, and gates
   * @param tensors where they are made
   * @throws IllegalArgumentException if a scale that is divided by is not positive and finite
   */
  TrtllmTensorScales(ExpertWeights weights, DeviceTensors tensors) {
    scales = new MatrixScales(tensors);
    int experts = weights.numExperts();
    float largest = 0;
    for (int e = 0; e < experts; e++) {
      ExpertWeights.Expert x = weights.expert(e);
      largest =
          Math.max(
              largest,
              Math.max(scales.input(x.up()), scales.input(Objects.requireNonNull(x.gate()))));
    }
    float[] a = new float[experts];
    float[] b = new float[experts];
    float[] c = new float[experts];
    for (int e = 0; e < experts; e++) {
      ExpertWeights.Expert x = weights.expert(e);
      float between = scales.input(x.down());
      a[e] = weight(x.up()) * largest / between;
      b[e] = weight(Objects.requireNonNull(x.gate())) * largest;
      c[e] = weight(x.down()) * between;
    }
    input = tensors.floats(new float[] {largest}, 1);
    up = tensors.floats(a, experts);
    gate = tensors.floats(b, experts);
    down = tensors.floats(c, experts);
  }

  /** The scale of a matrix: of all its codes, or beside those of its groups. */
  private float weight(Weight w) {
    return w.globalScale().isPresent() ? scales.global(w) : scales.only(w);
  }

  /** {@return of hidden states, one F32 number} */
  Tensor input() {
    return input;
  }

  /** {@return F32 {@code [E]}: of up, and what makes codes of the activation's result} */
  Tensor up() {
    return up;
  }

  /** {@return F32 {@code [E]}: of gate} */
  Tensor gate() {
    return gate;
  }

  /** {@return F32 {@code [E]}: of the second product} */
  Tensor down() {
    return down;
  }
}
