package io.moe4j.oracle;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.Arena;
import java.util.concurrent.atomic.AtomicBoolean;

/**
 * What a forward passes on its way to the backend, once a JVM, when its first layer is built:
 * classes are loaded there rather than in a forward, where that takes longer than a token's experts
 * do. Nothing is computed and no plugin is called.
 */
final class Rehearsal {
  private static final AtomicBoolean DONE = new AtomicBoolean();

  private Rehearsal() {}

  /** Goes through it unless that has been done. */
  static void once(MoeConfig config, ForwardChecks checks) {
    if (DONE.getAndSet(true)) {
      return;
    }
    new Events.Forward().end(); // Flight Recorder looks at a class of events when it is loaded
    try (Arena arena = Arena.ofShared()) {
      Tensor hidden = zeros(arena, config.inputDtype(), config.hiddenSize());
      Tensor output = zeros(arena, DType.F32, config.hiddenSize());
      Tensor ids = zeros(arena, DType.I32, config.topK());
      Tensor weights = zeros(arena, DType.F32, config.topK());
      MoeForward request = MoeForward.of(hidden, output).topkInto(ids, weights);
      ExpertsInputs.standard(hidden, new ExpertRouting(ids, weights, null), output);
      checks.require(request);
    } catch (IllegalArgumentException e) {
      // A layer that wants something else of a request, or has its tensors on a device: whoever
      // makes one is told then.
    }
  }

  private static Tensor zeros(Arena arena, DType type, long columns) {
    return Tensor.of(type, arena.allocate(type.byteSize(columns), 64), 1, columns);
  }
}
