package io.moe4j.backend.cpu;

import io.moe4j.api.device.Workspace;
import io.moe4j.api.spi.Fact;
import io.moe4j.backend.cpu.ffi.NativeKernels;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.List;
import java.util.concurrent.ConcurrentLinkedQueue;

/** MLPs with packed weights, computed by the kernels in C. */
final class NativeMlp implements Mlp {
  private final NativeSpec spec;
  private final ConcurrentLinkedQueue<NativeForward> pool = new ConcurrentLinkedQueue<>();

  private final List<Fact> facts;

  NativeMlp(
      PackedWeights weights,
      NativeKernels kernels,
      ThreadTeam team,
      Options options,
      List<Fact> facts) {
    this.facts = facts;
    spec = new NativeSpec(weights, kernels, team, options);
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
    return NativeLayout.of(spec, maxTokens).total();
  }

  @Override
  public void run(MlpCall call, MemorySegment workspace) {
    if (call.tokens() == 0) {
      return;
    }
    if (!workspace.isNative()) {
      try (Arena arena = Arena.ofShared()) {
        run(call, arena.allocate(workspaceBytes(call.tokens()), Workspace.ALIGNMENT));
      }
      return;
    }
    NativeForward f = pool.poll();
    if (f == null) {
      f = new NativeForward(spec);
    }
    try {
      f.run(call, NativeLayout.of(spec, call.tokens()), workspace);
    } finally {
      f.clear();
      pool.add(f);
    }
  }
}
