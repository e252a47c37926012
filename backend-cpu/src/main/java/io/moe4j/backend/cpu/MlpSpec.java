package io.moe4j.backend.cpu;

import io.moe4j.backend.cpu.kernel.Kernels;

/**
 * What is fixed for all calls of a {@link GroupedMlp}.
 *
 * @param weights of its MLPs
 * @param topK MLPs that a token is routed to
 * @param weightOnInput whether topk weights scale the input, not the output
 * @param maxLoras adapter slots, 0 without LoRA
 * @param maxRank the largest rank a slot can hold
 * @param batchInvariant whether results may not depend on what else is in the batch
 */
record MlpSpec(
    MlpWeights weights,
    Kernels kernels,
    ThreadTeam team,
    int topK,
    boolean weightOnInput,
    int maxLoras,
    int maxRank,
    boolean batchInvariant) {

  /**
   * {@return whether experts with many tokens are computed by panels; their sums run in another
   * order, so not where results may not depend on the batch}
   */
  boolean usesPanels() {
    return kernels.lanes() > 1 && !batchInvariant;
  }
}
