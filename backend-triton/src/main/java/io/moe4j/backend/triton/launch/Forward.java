package io.moe4j.backend.triton.launch;

import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.backend.triton.tiles.TilePlan;
import io.moe4j.cuda.ops.PairBatch;

/**
 * What the launches of one forward share.
 *
 * @param plan tiles
 * @param at where the parts of the scratch lie
 * @param base address of the scratch
 * @param batch the pairs
 * @param hidden address of the experts' input, in the weights' dtype, 16-byte aligned
 * @param output what is written
 * @param batched whether output rows without a pair are left alone
 */
record Forward(
    TilePlan plan,
    ForwardLayout at,
    long base,
    PairBatch batch,
    long hidden,
    Tensor output,
    boolean batched) {
  DeviceStream stream() {
    return batch.stream();
  }

  int pairs() {
    return batch.pairs();
  }

  boolean lora() {
    return batch.lora();
  }

  long address(long offset) {
    return base + offset;
  }

  /** Most tiles the sort can make. */
  int tiles() {
    return plan.naive() ? pairs() : batch.maxTiles(plan.tileRows());
  }
}
