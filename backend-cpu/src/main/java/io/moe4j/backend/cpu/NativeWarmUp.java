package io.moe4j.backend.cpu;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.backend.cpu.ffi.NativeKernels;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Collections;
import java.util.List;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Forwards of a tiny invented layer, once a JVM, when the first layer is prepared: they load
 * classes and link the calls into C, and the compiler sees what it will have to compile. Without
 * them the first forward of a JVM takes some 25 ms longer than the others. What layers compute does
 * not depend on it.
 */
final class NativeWarmUp {
  private static final Logger LOG = LoggerFactory.getLogger(NativeWarmUp.class);
  private static final int WIDTH = 64;
  private static final int EXPERTS = 64;

  /**
   * Each calls C once for every expert in each product: together more often than the 5000 times
   * after which the JVM compiles a method for good.
   */
  private static final int FORWARDS = 100;

  private static final int TOKENS = 2;
  private static final int TOP_K = 8;
  private static boolean done;

  private NativeWarmUp() {}

  /** Runs them unless that has been done; others wait. */
  static synchronized void once(BlockKernels block, NativeKernels kernels) {
    if (done) {
      return;
    }
    done = true;
    long start = System.nanoTime();
    try (Arena arena = Arena.ofShared()) {
      run(block, kernels, arena);
    } catch (RuntimeException | OutOfMemoryError e) {
      LOG.debug("kernels in C: not warmed up", e); // the layer at hand may have room all the same
      return;
    }
    LOG.debug("kernels in C: warmed up in {} us", (System.nanoTime() - start) / 1000);
  }

  private static void run(BlockKernels block, NativeKernels kernels, Arena arena) {
    ThreadTeam team = block.team();
    Tensor w = zeros(arena, DType.BF16, WIDTH, WIDTH);
    MlpWeights plain =
        new MlpWeights(
            Activation.SILU,
            Collections.nCopies(EXPERTS, ExpertWeights.Expert.plain(w, w, w)),
            arena,
            false);
    PackedWeights packed = new PackedWeights(plain, false);
    packed.pack(plain, kernels, team, arena);
    NativeMlp mlp =
        new NativeMlp(
            packed, kernels, team, new Mlp.Options(EXPERTS, false, 0, 0, false), List.of());
    MemorySegment ids = arena.allocate(4L * TOKENS * EXPERTS, Workspace.ALIGNMENT);
    for (int i = 0; i < TOKENS * EXPERTS; i++) {
      ids.setAtIndex(ValueLayout.JAVA_INT, i, i % EXPERTS);
    }
    Tensor x = zeros(arena, DType.BF16, TOKENS, WIDTH);
    DenseLayer router =
        new DenseLayer(zeros(arena, DType.BF16, EXPERTS, WIDTH), null, arena, block, null, 0, 0);
    RouteRows routing =
        new RouteRows(
            new RouteRows.Rule(
                RoutingConfig.SOFTMAX, EXPERTS, TOP_K, new float[0], new float[0], new int[0]),
            block,
            arena);
    Tensor logits = zeros(arena, DType.F32, TOKENS, EXPERTS);
    Tensor topkIds = zeros(arena, DType.I32, TOKENS, TOP_K);
    Tensor topkWeights = zeros(arena, DType.F32, TOKENS, TOP_K);
    MlpCall call =
        new MlpCall(
            x.segment(),
            DType.BF16,
            TOKENS,
            EXPERTS,
            ids,
            zeros(arena, DType.F32, TOKENS, EXPERTS).segment(),
            null,
            null,
            zeros(arena, DType.F32, TOKENS, WIDTH).segment(),
            DType.F32);
    MemorySegment workspace = arena.allocate(mlp.workspaceBytes(TOKENS), Workspace.ALIGNMENT);
    for (int i = 0; i < FORWARDS; i++) {
      router.run(x.segment(), DType.BF16, TOKENS, null, logits.segment(), 0, workspace, 0);
      routing.run(logits, null, topkIds, topkWeights);
      mlp.run(call, workspace);
    }
  }

  private static Tensor zeros(Arena arena, DType type, long rows, long columns) {
    return Tensor.of(
        type, arena.allocate(type.byteSize(rows * columns), Workspace.ALIGNMENT), rows, columns);
  }
}
