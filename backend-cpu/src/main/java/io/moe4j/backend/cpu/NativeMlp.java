package io.moe4j.backend.cpu;

import io.moe4j.api.device.Workspace;
import io.moe4j.backend.cpu.ffi.CallStruct;
import io.moe4j.backend.cpu.ffi.NativeKernels;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.concurrent.ConcurrentLinkedQueue;

/** MLPs with packed weights, computed by the kernels in C. */
final class NativeMlp implements Mlp {
  /** Weights that a task reads, about; whole blocks. */
  private static final long TASK_BYTES = 256 << 10;

  /** Where things stand in the workspace, in bytes. */
  record Layout(
      int tokens,
      long x,
      long xStride,
      long act,
      long actStride,
      long y,
      long yStride,
      long pair,
      long position,
      long shrunk,
      long shrunkStride,
      long segments,
      long call,
      long total) {}

  final PackedWeights weights;
  final NativeKernels kernels;
  final ThreadTeam team;
  final Options options;

  /** Blocks of w13 and of w2 that a task computes. */
  final int group13;

  final int group2;
  private final ConcurrentLinkedQueue<NativeForward> pool = new ConcurrentLinkedQueue<>();

  NativeMlp(PackedWeights weights, NativeKernels kernels, ThreadTeam team, Options options) {
    this.weights = weights;
    this.kernels = kernels;
    this.team = team;
    this.options = options;
    group13 = group(weights.blocks13(), weights.blockBytes13());
    group2 = group(weights.blocks2(), weights.blockBytes2());
  }

  private static int group(int blocks, long bytes) {
    return Math.clamp(TASK_BYTES / bytes, 1, blocks);
  }

  @Override
  public int hidden() {
    return weights.hidden;
  }

  @Override
  public String description() {
    return kernels.description();
  }

  Layout layout(int maxTokens) {
    int tokens = Math.clamp(maxTokens, 1, Math.max(1, MlpLayout.CHUNK_PAIRS / options.topK()));
    long pairs = (long) tokens * options.topK();
    // A multiple of 4096 would put all rows of a column into the same few lines of a cache.
    long xStride = 4L * weights.hiddenPadded + Workspace.ALIGNMENT;
    long actStride = 4L * weights.intermediatePadded + Workspace.ALIGNMENT;
    boolean lora = options.maxLoras() > 0;
    long shrunkStride = lora ? 3 * Workspace.align(4L * options.maxRank()) : 0;
    long act = xStride * pairs;
    long y = act + actStride * pairs;
    long pair = y + xStride * pairs;
    long position = pair + Workspace.align(4 * pairs);
    long shrunk = position + Workspace.align(4 * pairs);
    long segments = shrunk + shrunkStride * pairs;
    long call = segments + Workspace.align(lora ? CallStruct.SEGMENT_BYTES * pairs : 0);
    long total = call + Workspace.align(CallStruct.CALL_BYTES);
    return new Layout(
        tokens,
        0,
        xStride,
        act,
        actStride,
        y,
        xStride,
        pair,
        position,
        shrunk,
        shrunkStride,
        segments,
        call,
        total);
  }

  @Override
  public long workspaceBytes(int maxTokens) {
    return layout(maxTokens).total();
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
      f = new NativeForward(this);
    }
    try {
      f.run(call, layout(call.tokens()), workspace);
    } finally {
      f.clear();
      pool.add(f);
    }
  }
}
