package io.moe4j.cuda.ops;

import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.Tensor;
import org.jspecify.annotations.Nullable;

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
  /**
   * {@return the pairs of a call}
   *
   * @param routing of the call; null for BATCHED
   * @param madeIds where {@link TileSort#batchedIds} leaves the ids of a BATCHED call
   * @param madeSlots where it leaves the slots of one with adapters
   * @param tokens {@code T} (BATCHED: all rows)
   * @param experts local
   * @param adapters in use
   * @param stream where to run
   */
  public static PairBatch of(
      @Nullable ExpertRouting routing,
      long madeIds,
      long madeSlots,
      int tokens,
      int experts,
      AdaptersInUse adapters,
      DeviceStream stream) {
    Tensor map = routing == null ? null : routing.expertMap();
    return new PairBatch(
        stream,
        routing == null ? madeIds : routing.topkIds().deviceAddress(),
        routing == null ? 0 : routing.topkWeights().deviceAddress(),
        map == null ? 0 : map.deviceAddress(),
        routing == null && adapters.mapping() != 0 ? madeSlots : adapters.mapping(),
        adapters.table(),
        tokens,
        routing == null ? 1 : Math.toIntExact(routing.topkIds().size(1)),
        map == null ? experts : Math.toIntExact(map.size(0)),
        experts,
        adapters.slots(),
        adapters.rank());
  }

  /**
   * For a choice of tiles: the tokens that would give the local experts as many pairs as these do
   * if all experts were local. Of experts that are shared by ranks each rank sees all pairs, and
   * computes its own part of them.
   *
   * @param tokens {@code T}
   * @param experts local
   * @param routing of the call; null for BATCHED, whose rows are all local
   * @return {@code tokens} where nothing is shared; of several tokens never one, which is a case of
   *     its own
   * @since 0.2.0
   */
  public static int tokensHere(int tokens, int experts, @Nullable ExpertRouting routing) {
    Tensor map = routing == null ? null : routing.expertMap();
    if (map == null || map.size(0) <= experts || tokens <= 2) {
      return tokens;
    }
    return Math.max(2, (int) Math.ceilDiv((long) tokens * experts, map.size(0)));
  }

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
