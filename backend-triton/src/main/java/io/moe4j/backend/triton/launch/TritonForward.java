package io.moe4j.backend.triton.launch;

import io.moe4j.api.device.DeviceStream;
import io.moe4j.backend.triton.tiles.TilePlan;
import io.moe4j.cuda.experts.ForwardLayout;
import io.moe4j.cuda.experts.GroupedForward;
import io.moe4j.cuda.experts.GroupedProducts;
import io.moe4j.cuda.ops.ComposedLora;
import io.moe4j.cuda.ops.PairBatch;
import io.moe4j.cuda.ops.ShrinkPlan;
import io.moe4j.cuda.ops.TileSort;

/**
 * One forward, as it was chosen.
 *
 * @param gemm its launches
 * @param plan tiles
 * @param width padded, of the experts' input
 * @param of what all its launches share
 */
record TritonForward(GemmLaunches gemm, TilePlan plan, int width, GroupedForward of)
    implements GroupedProducts.Forward {
  ForwardLayout at() {
    return of.at();
  }

  PairBatch batch() {
    return of.batch();
  }

  DeviceStream stream() {
    return of.batch().stream();
  }

  int pairs() {
    return of.batch().pairs();
  }

  boolean lora() {
    return of.batch().lora();
  }

  long address(long offset) {
    return of.address(offset);
  }

  /** Most tiles the sort can make. */
  int tiles() {
    return plan.naive() ? pairs() : of.batch().maxTiles(plan.tileRows());
  }

  @Override
  public boolean naive() {
    return plan.naive();
  }

  @Override
  public int tileRows() {
    return plan.tileRows();
  }

  @Override
  public ShrinkPlan shrinks() {
    return plan.shrinks();
  }

  @Override
  public void sorted(TileSort sort) {
    if (plan.permute()) {
      sort.permute(
          of.batch(), of.hidden(), address(at().lists().posOf()), address(at().own()), width);
    }
  }

  @Override
  public void run() {
    gemm.run(this);
  }

  @Override
  public ComposedLora.Products plain() {
    return gemm.products(this);
  }
}
