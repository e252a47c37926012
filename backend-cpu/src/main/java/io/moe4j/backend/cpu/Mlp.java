package io.moe4j.backend.cpu;

import io.moe4j.api.spi.Fact;
import java.lang.foreign.MemorySegment;
import java.util.List;

/**
 * Some MLPs over the tokens routed to each: w13 product, LoRA, activation, w2 product, LoRA,
 * weighted sum. Thread-safe: each call works on its own workspace.
 */
interface Mlp {
  /**
   * What all MLPs of one set have in common.
   *
   * @param topK pairs of a token
   * @param weightOnInput whether the router's weight scales what the MLPs read
   * @param maxLoras slots
   * @param maxRank of an adapter
   * @param batchInvariant whether results may not depend on the batch
   */
  record Options(
      int topK, boolean weightOnInput, int maxLoras, int maxRank, boolean batchInvariant) {}

  /** {@return width of what is read and written} */
  int hidden();

  /** {@return bytes of workspace for a call of so many tokens} */
  long workspaceBytes(int maxTokens);

  /** Computes a call. */
  void run(MlpCall call, MemorySegment workspace);

  /** {@return which kernels run, where weights are, who computes} */
  List<Fact> facts();
}
