package io.moe4j.backend.cpu;

import java.lang.foreign.MemorySegment;
import java.util.concurrent.ConcurrentLinkedQueue;

/**
 * The computation of some MLPs over the tokens routed to each: w13 product, LoRA, activation, w2
 * product, LoRA, weighted sum. Thread-safe: each call works on its own workspace and on a state
 * taken from a pool.
 */
final class GroupedMlp {
  private final MlpSpec spec;
  private final ConcurrentLinkedQueue<MlpForward> pool = new ConcurrentLinkedQueue<>();

  GroupedMlp(MlpSpec spec) {
    this.spec = spec;
  }

  MlpWeights weights() {
    return spec.weights();
  }

  long workspaceBytes(int maxTokens) {
    return MlpLayout.of(spec, maxTokens).total();
  }

  void run(MlpCall call, MemorySegment workspace) {
    if (call.tokens() == 0) {
      return;
    }
    MlpForward f = pool.poll();
    if (f == null) {
      f = new MlpForward(spec);
    }
    try {
      f.run(call, MlpLayout.of(spec, call.tokens()), workspace);
    } finally {
      f.clear();
      pool.add(f);
    }
  }
}
