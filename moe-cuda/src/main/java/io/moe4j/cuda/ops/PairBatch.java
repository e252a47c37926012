package io.moe4j.cuda.ops;

import io.moe4j.api.device.DeviceStream;

/**
 * The (token, k) pairs of one forward, their experts and adapters, as device addresses. Nothing
 * here owns memory.
 *
 * @param stream where to run
 * @param ids int32 {@code [T, K]}, global expert ids, -1 = none
 * @param weights F32 {@code [T, K]}; 0 = all are 1
 * @param expertMap int32 {@code [globalExperts]}, local expert or -1; 0 = ids are local
 * @param mapping int32 {@code [T]}, slot or -1; 0 without LoRA
 * @param table address of a {@link SlotTable}; 0 without LoRA
 * @param tokens {@code T} (BATCHED: all rows)
 * @param topK {@code K}
 * @param globalExperts ids below this are known
 * @param experts local experts
 * @param slots rows of the table; 0 without LoRA
 * @param rank largest rank, padded to a page; 0 without LoRA
 * @since 0.2.0
 */
public record PairBatch(
    DeviceStream stream,
    long ids,
    long weights,
    long expertMap,
    long mapping,
    long table,
    int tokens,
    int topK,
    int globalExperts,
    int experts,
    int slots,
    int rank) {
  /** {@return {@code P = T * K}} */
  public int pairs() {
    return tokens * topK;
  }

  /** {@return whether pairs may have adapters} */
  public boolean lora() {
    return slots > 0;
  }

  /** {@return what a kernel that asks for it gets: 1 with an expert map, else 0} */
  public int hasMap() {
    return expertMap == 0 ? 0 : 1;
  }

  /**
   * {@return no routing gives more tiles than this}
   *
   * @param rows of a tile
   */
  public int maxTiles(int rows) {
    return (int) Math.min(pairs(), (long) pairs() / rows + Math.min(experts, pairs()));
  }

  /**
   * {@return no routing gives more tiles of one expert and one adapter than this}
   *
   * @param rows of a tile
   */
  public int maxShrinkTiles(int rows) {
    long segments = Math.min(pairs(), (long) experts * slots);
    return (int) Math.min(pairs(), pairs() / rows + segments);
  }
}
