package io.moe4j.backend.cpu;

import io.moe4j.api.config.Activation;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.Weight;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;

/**
 * The weights of some MLPs of one shape, ready for the kernels: the routed experts of a layer, or
 * its shared expert as a single one.
 */
final class MlpWeights {
  final Activation activation;
  final int hidden;
  final int intermediate;
  final Matrix[] gate;
  final Matrix[] up;
  final Matrix[] down;
  final @Nullable MemorySegment[] gateBias;
  final @Nullable MemorySegment[] upBias;
  final @Nullable MemorySegment[] downBias;
  final LoraTarget gateTarget;
  final LoraTarget upTarget;
  final LoraTarget downTarget;

  /**
   * @param activation between the products
   * @param experts of one shape
   * @param arena where repacked copies go
   * @param shared whether LoRA targets are those of the shared expert
   */
  MlpWeights(
      Activation activation, List<ExpertWeights.Expert> experts, Arena arena, boolean shared) {
    this.activation = activation;
    ExpertWeights.Expert first = experts.getFirst();
    intermediate = Math.toIntExact(first.up().out());
    hidden = Math.toIntExact(first.up().in());
    int n = experts.size();
    gate = new Matrix[activation.isGated() ? n : 0];
    up = new Matrix[n];
    down = new Matrix[n];
    gateBias = new MemorySegment[n];
    upBias = new MemorySegment[n];
    downBias = new MemorySegment[n];
    for (int e = 0; e < n; e++) {
      ExpertWeights.Expert x = experts.get(e);
      Weight g = x.gate();
      if (activation.isGated()) {
        if (g == null) {
          throw new IllegalArgumentException(
              "expert " + e + " has no gate, which " + activation + " needs");
        }
        gate[e] = matrix(g, arena);
      }
      up[e] = matrix(x.up(), arena);
      down[e] = matrix(x.down(), arena);
      gateBias[e] = bias(x.gateBias(), arena);
      upBias[e] = bias(x.upBias(), arena);
      downBias[e] = bias(x.downBias(), arena);
    }
    gateTarget = shared ? LoraTarget.SHARED_GATE : LoraTarget.GATE;
    upTarget = shared ? LoraTarget.SHARED_UP : LoraTarget.UP;
    downTarget = shared ? LoraTarget.SHARED_DOWN : LoraTarget.DOWN;
  }

  /**
   * The rows of a weight: in place where they are dense or coded, one copy in the same dtype where
   * plain ones are not.
   */
  private static Matrix matrix(Weight weight, Arena arena) {
    if (weight.isPlain()) {
      Rows.requireFloat(weight.name(), weight.plain());
      return Rows.of(weight.plain(), arena);
    }
    return new CodedRows(weight);
  }

  private static @Nullable MemorySegment bias(@Nullable Tensor t, Arena arena) {
    return t == null ? null : Rows.vector(t, arena);
  }

  /** {@return whether some matrix is in codes} */
  boolean isCoded() {
    return Stream.of(gate, up, down).flatMap(Arrays::stream).anyMatch(CodedRows.class::isInstance);
  }

  int count() {
    return up.length;
  }
}
