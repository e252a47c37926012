package io.moe4j.backend.cpu;

import io.moe4j.api.device.Workspace;
import io.moe4j.api.tensor.DType;
import io.moe4j.backend.cpu.kernel.Kernels;
import io.moe4j.backend.cpu.kernel.TypedKernels;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.EnumSet;
import java.util.Set;

/**
 * The router's product with one token, on invented numbers, once a JVM for each dtype of its
 * weights. Operations of the Vector API are a hundred times slower until the JVM has compiled what
 * calls them, and a layer's own first forwards call them too seldom for that. What layers compute
 * does not depend on it.
 *
 * <p>Products with more tokens are not warmed up: they would take longer here than they save.
 */
final class DenseWarmUp {
  private static final int ROWS = 4;

  /** One vector of the widest kind, so that calls are short: what counts is how many there are. */
  private static final int WIDTH = 16;

  /** More than the 5000 after which the JVM compiles a method for good. */
  private static final int CALLS = 6000;

  private static final Set<DType> DONE = EnumSet.noneOf(DType.class);

  private DenseWarmUp() {}

  /**
   * Runs it unless that has been done; others wait.
   *
   * @param type of the weights: F32, BF16 or F16
   */
  static synchronized void once(Kernels kernels, DType type) {
    if (!DONE.add(type)) {
      return;
    }
    try (Arena arena = Arena.ofShared()) {
      MemorySegment w = arena.allocate(type.byteSize(ROWS * WIDTH), Workspace.ALIGNMENT);
      MemorySegment x = arena.allocate(4L * WIDTH, Workspace.ALIGNMENT);
      MemorySegment out = arena.allocate(4L * ROWS, Workspace.ALIGNMENT);
      TypedKernels typed = kernels.forType(type, w);
      long[] at = new long[TypedKernels.MAX_TOKENS];
      float[] scratch = new float[TypedKernels.DOT_SCRATCH];
      long stride = type.byteSize(WIDTH);
      for (int i = 0; i < CALLS; i++) {
        typed.dot(w, 0, stride, ROWS, x, at, 1, WIDTH, out, 0, 4L * ROWS, scratch);
      }
    }
  }
}
