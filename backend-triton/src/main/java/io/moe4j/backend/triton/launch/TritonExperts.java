package io.moe4j.backend.triton.launch;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.spi.Fact;
import io.moe4j.api.spi.ModularExperts;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.backend.triton.tiles.TileChoice;
import io.moe4j.backend.triton.tiles.TilePlan;
import io.moe4j.backend.triton.tiles.TileTable;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.experts.GroupedExperts;
import io.moe4j.cuda.experts.GroupedForward;
import io.moe4j.cuda.experts.GroupedProducts;
import io.moe4j.cuda.ops.ExpertKernels;
import io.moe4j.cuda.ops.LoraMode;
import io.moe4j.cuda.ops.PaddedSizes;
import java.util.List;

/**
 * Stacked weights and what {@link GroupedExperts} does with them. Plans that permute copy the
 * tokens into the order of the sort first.
 */
public final class TritonExperts implements GroupedProducts {
  private static final int ELEMENT = 2;

  private final MoeConfig config;
  private final CudaDevice device;
  private final PaddedSizes sizes;
  private final ExpertMatrices matrices;
  private final GemmLaunches gemm;
  private final int experts;
  private final TileChoice tiles;

  private TritonExperts(
      MoeConfig config,
      ExpertWeights weights,
      CudaDevice device,
      ExpertKernels shared,
      TileChoice tiles) {
    this.tiles = tiles;
    this.config = config;
    this.device = device;
    this.experts = weights.numExperts();
    this.sizes = PaddedSizes.of(config);
    this.matrices = new ExpertMatrices(device, config, weights);
    try {
      this.gemm =
          new GemmLaunches(new TritonKernels(device), shared, config, sizes, experts, matrices);
    } catch (RuntimeException | Error e) {
      matrices.close(); // nobody else could
      throw e;
    }
  }

  /**
   * Brings a layer's weights to a card.
   *
   * @param config of the layer
   * @param weights read here, not kept
   * @param device the card
   * @param mode who adds LoRA deltas
   * @param tiles who chooses them
   * @return the experts, owned by the caller
   */
  public static ModularExperts prepare(
      MoeConfig config, ExpertWeights weights, CudaDevice device, LoraMode mode, TileChoice tiles) {
    ExpertKernels shared = new ExpertKernels(device);
    TritonExperts own = new TritonExperts(config, weights, device, shared, tiles);
    return new GroupedExperts(config, device, shared, weights.numExperts(), mode, own);
  }

  @Override
  public long ownBytes(long pairs, boolean composed) {
    return composed ? 0 : ELEMENT * pairs * sizes.hidden();
  }

  @Override
  public Forward forward(GroupedForward f) {
    TileTable.Problem problem =
        new TileTable.Problem(
            TritonKernels.tuned(device.info(), config.weightDtype()),
            TritonKernels.portableStages(device.info()),
            config.activation().isGated(),
            f.tokensHere(),
            f.batch().topK(),
            experts,
            sizes.hidden(),
            sizes.intermediate(),
            f.adapters().used(),
            f.adapters().rank(),
            f.batched(),
            ExpertMatrices.isMxfp4(config));
    TilePlan plan = tiles.choose(problem);
    if (f.composed()) {
      plan = TileTable.composed(problem, plan);
    }
    return new TritonForward(gemm, plan, sizes.hidden(), f);
  }

  @Override
  public List<Fact> facts() {
    boolean mxfp4 = ExpertMatrices.isMxfp4(config);
    return List.of(
        new Fact(
            "weights",
            "on the card in "
                + (mxfp4 ? "MXFP4" : config.weightDtype().toString())
                + (config.isQuantized() && !mxfp4 ? ", unpacked" : ""),
            matrices.byteSize()));
  }

  @Override
  public void close() {
    matrices.close();
  }
}
