package io.moe4j.backend.triton;

import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * What the launches of one forward share, as device addresses.
 *
 * @param plan tiles
 * @param at where the parts of the scratch lie
 * @param base address of the scratch
 * @param stream where to run
 * @param hidden the experts' input, in the weights' dtype, 16-byte aligned
 * @param ids topk ids
 * @param weights topk weights; 0 = all are 1
 * @param expertMap 0 for none
 * @param mapping slot of each token; 0 without LoRA
 * @param output what is written
 * @param batched whether output rows without a pair are left alone
 * @param tokens {@code T}
 * @param topK {@code K}
 * @param globalExperts ids below this are known
 * @param table slot table; 0 without LoRA
 * @param slots its rows
 * @param rank largest rank, padded to a page
 */
record Forward(
    TilePlan plan,
    ForwardLayout at,
    long base,
    DeviceStream stream,
    long hidden,
    long ids,
    long weights,
    long expertMap,
    long mapping,
    Tensor output,
    boolean batched,
    int tokens,
    int topK,
    int globalExperts,
    long table,
    int slots,
    int rank) {
  int pairs() {
    return tokens * topK;
  }

  boolean lora() {
    return slots > 0;
  }

  long address(long offset) {
    return base + offset;
  }

  int hasMap() {
    return expertMap == 0 ? 0 : 1;
  }

  /** Most tiles the sort can make. */
  int tiles(int experts) {
    return plan.naive()
        ? pairs()
        : (int) Math.min(pairs(), (long) pairs() / plan.tileRows() + Math.min(experts, pairs()));
  }

  /** Most shrink tiles. */
  int shrinkTiles(int experts) {
    if (plan.naive()) {
      return pairs();
    }
    long segments = Math.min(pairs(), (long) experts * slots);
    return (int) Math.min(pairs(), pairs() / plan.shrinkRows() + segments);
  }

  /** How a kernel that takes null for "none" is told. */
  static long orNull(@Nullable Tensor t) {
    return t == null ? 0 : t.deviceAddress();
  }
}
