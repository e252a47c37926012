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

  /** The same of blocks in codes: w2 of one token has too few tasks for many threads otherwise. */
  private static final long CODED_TASK_BYTES = 128 << 10;

  /** {@return blocks of w13 that a task computes} */
  int group13() {
    return group(weights.w13);
  }

  /** {@return blocks of w2 that a task computes} */
  int group2() {
    return group(weights.w2);
  }

  private static int group(PackedSide side) {
    long bytes = side.structAddress() == 0 ? TASK_BYTES : CODED_TASK_BYTES;
    return Math.clamp(bytes / side.blockBytes(), 1, side.blocks());
  }
}
