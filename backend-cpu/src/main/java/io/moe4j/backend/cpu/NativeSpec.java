package io.moe4j.backend.cpu;

import io.moe4j.backend.cpu.ffi.NativeKernels;

/**
 * What is fixed for all calls of a {@link NativeMlp}.
 *
 * @param weights packed
 * @param options of the layer
 */
record NativeSpec(
    PackedWeights weights, NativeKernels kernels, ThreadTeam team, Mlp.Options options) {
  /** Weights that a task reads, about; whole blocks. */
  private static final long TASK_BYTES = 256 << 10;

  /** {@return blocks of w13 that a task computes} */
  int group13() {
    return group(weights.w13.blocks(), weights.w13.blockBytes());
  }

  /** {@return blocks of w2 that a task computes} */
  int group2() {
    return group(weights.w2.blocks(), weights.w2.blockBytes());
  }

  private static int group(int blocks, long bytes) {
    return Math.clamp(TASK_BYTES / bytes, 1, blocks);
  }
}
