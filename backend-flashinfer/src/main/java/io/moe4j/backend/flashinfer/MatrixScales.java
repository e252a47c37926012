package io.moe4j.backend.flashinfer;

import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.Weight;
import java.lang.foreign.Arena;

/**
 * Reads the scales that a matrix has for all its elements, as numbers to multiply by. Some are
 * divided by here or in FlashInfer's kernels, so none of those may be zero.
 */
final class MatrixScales {
  private final DeviceTensors tensors;

  /**
   * @param tensors fetches what is on the card
   */
  MatrixScales(DeviceTensors tensors) {
    this.tensors = tensors;
  }

  /**
   * {@return the scale of what a matrix is multiplied by}
   *
   * @param w with an input scale
   * @throws IllegalArgumentException if it is not positive and finite
   */
  float input(Weight w) {
    return factor(w, "input scale", w.inputScale().orElseThrow());
  }

  /**
   * {@return the scale beside those of groups}
   *
   * @param w with a global scale
   * @throws IllegalArgumentException if it is not positive and finite
   */
  float global(Weight w) {
    return factor(w, "global scale", w.globalScale().orElseThrow());
  }

  /**
   * {@return the scale of all codes; zero where all are zero}
   *
   * @param w with one scale
   */
  float only(Weight w) {
    return number(w.scales().orElseThrow());
  }

  /** Checkpoints that divide by the global scale divide by the input's, too. */
  private float factor(Weight w, String what, Tensor scale) {
    float stored = number(scale);
    if (!(stored > 0 && stored < Float.POSITIVE_INFINITY)) {
      throw new IllegalArgumentException(
          w.name() + ": the " + what + " is " + stored + ", must be positive and finite");
    }
    return w.globalScale().isPresent() && w.dividedByGlobal() ? 1 / stored : stored;
  }

  private float number(Tensor one) {
    try (Arena arena = Arena.ofConfined()) {
      return tensors.onHost(one, arena).toFloats()[0];
    }
  }
}
