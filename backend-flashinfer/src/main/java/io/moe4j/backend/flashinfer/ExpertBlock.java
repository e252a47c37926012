package io.moe4j.backend.flashinfer;

import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.MoeConfig;
import java.util.Optional;

/**
 * The experts of this rank as FlashInfer counts them: the global experts are cut into equal blocks
 * of {@code local}, and this rank has one block.
 *
 * @param local experts of a block
 * @param ranks blocks
 * @param rank which block
 */
record ExpertBlock(int local, int ranks, int rank) {
  /** {@return the block of a layer, empty where its map is not one of equal blocks in order} */
  static Optional<ExpertBlock> of(MoeConfig config) {
    if (config.expertMap().isEmpty()) {
      return Optional.of(new ExpertBlock(config.numExperts(), 1, 0));
    }
    ExpertMap map = config.expertMap().get();
    int local = map.numLocalExperts();
    int global = map.numGlobalExperts();
    if (local == 0 || global % local != 0) {
      return Optional.empty();
    }
    int first = 0;
    while (map.local(first) != 0) {
      first++;
    }
    if (first % local != 0) {
      return Optional.empty();
    }
    for (int e = 0; e < local; e++) {
      if (map.local(first + e) != e) {
        return Optional.empty();
      }
    }
    return Optional.of(new ExpertBlock(local, global / local, first / local));
  }
}
