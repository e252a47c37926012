package io.moe4j.backend.flashinfer;

import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.Weight;
import java.lang.foreign.Arena;
import java.util.Objects;

/**
 * The scales that each expert has beside those of groups, FP8 per tensor and NVFP4: the kernels
 * compute {@code out1 = a * up * silu(b * gate)} of raw products and code it, then {@code out2 = c
 * * down}. So gate and up keep scales of their own. Hidden states are coded once for all experts,
 * so their scale is the largest that any expert's gate or up asks for. The tensors are their
 * collection's.
 */
final class TrtllmTensorScales {
  private final DeviceTensors tensors;
  private final Tensor input;
  private final Tensor up;
  private final Tensor gate;
  private final Tensor down;

  /**
   * @param weights with input scales, and gates
   * @param tensors where they are made
   */
  TrtllmTensorScales(ExpertWeights weights, DeviceTensors tensors) {
    this.tensors = tensors;
    int experts = weights.numExperts();
    float largest = 0;
    for (int e = 0; e < experts; e++) {
      ExpertWeights.Expert x = weights.expert(e);
      largest = Math.max(largest, Math.max(input(x.up()), input(Objects.requireNonNull(x.gate()))));
    }
    float[] a = new float[experts];
    float[] b = new float[experts];
    float[] c = new float[experts];
    for (int e = 0; e < experts; e++) {
      ExpertWeights.Expert x = weights.expert(e);
      float between = input(x.down());
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
    return w.globalScale().isPresent()
        ? stored(w, w.globalScale().orElseThrow())
        : number(w.scales().orElseThrow());
  }

  private float input(Weight w) {
    return stored(w, w.inputScale().orElseThrow());
  }

  /** Checkpoints that divide by the global scale divide by the input's, too. */
  private float stored(Weight w, Tensor scale) {
    float value = number(scale);
    return w.globalScale().isPresent() && w.dividedByGlobal() ? 1 / value : value;
  }

  private float number(Tensor one) {
    try (Arena arena = Arena.ofConfined()) {
      return tensors.onHost(one, arena).toFloats()[0];
    }
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
