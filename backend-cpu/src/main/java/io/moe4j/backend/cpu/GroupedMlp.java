package io.moe4j.backend.cpu;

import io.moe4j.api.spi.Fact;
import java.lang.foreign.MemorySegment;
import java.util.List;
import java.util.concurrent.ConcurrentLinkedQueue;

/**
 * The computation of some MLPs over the tokens routed to each: w13 product, LoRA, activation, w2
 * product, LoRA, weighted sum. Thread-safe: each call works on its own workspace and on a state
 * taken from a pool.
 */
final class GroupedMlp implements Mlp {
  private final MlpSpec spec;
  private final ConcurrentLinkedQueue<MlpForward> pool = new ConcurrentLinkedQueue<>();

  private final List<Fact> facts;

  GroupedMlp(MlpSpec spec, List<Fact> facts) {
    this.facts = facts;
    this.spec = spec;
  }

  @Override
  public int hidden() {
    return spec.weights().hidden;
  }

  @Override
  public List<Fact> facts() {
    return facts;
  }

  @Override
  public long workspaceBytes(int maxTokens) {
    return MlpLayout.of(spec, maxTokens).total();
  }

  @Override
  public void run(MlpCall call, MemorySegment workspace) {
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
