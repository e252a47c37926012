package io.moe4j.backend.marlin;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.spi.Fact;
import io.moe4j.api.spi.ModularExperts;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaDeviceProvider;
import io.moe4j.cuda.experts.GroupedExperts;
import io.moe4j.cuda.experts.GroupedForward;
import io.moe4j.cuda.experts.GroupedProducts;
import io.moe4j.cuda.ops.ExpertKernels;
import io.moe4j.cuda.ops.LoraMode;
import io.moe4j.cuda.ops.PaddedSizes;
import java.util.List;
import java.util.function.Function;

/**
 * Packed weights and what {@link GroupedExperts} does with them. With act-order the products read
 * rows that {@code permute_inputs} has put in the order of the weights' groups; the shrinks read
 * them as they were:
 *
 * <pre>
 *   hidden -> [order] -> [shrink] -> [w13] -> [order] -> [shrink] -> [w2] -> [combine]
 * </pre>
 */
final class MarlinExperts implements GroupedProducts {
  private static final int ELEMENT = 2;

  private final MoeConfig config;
  private final int experts;
  private final PaddedSizes sizes;
  private final MarlinWeights weights;
  private final MarlinProducts products;
  private final List<Integer> narrow;
  private final List<Integer> wide;
  private final boolean single;
  private final boolean tuned;
  private final int multiprocessors;
  private final Function<MarlinPlan.Problem, MarlinPlan> choice;

  private MarlinExperts(
      MoeConfig config,
      ExpertWeights given,
      CudaDevice device,
      ExpertKernels shared,
      Function<MarlinPlan.Problem, MarlinPlan> choice) {
    this.config = config;
    this.choice = choice;
    this.experts = given.numExperts();
    this.sizes = PaddedSizes.of(config);
    MarlinKernels kernels = new MarlinKernels(device);
    this.multiprocessors =
        Integer.parseInt(device.info().properties().getOrDefault("multiprocessors", "1"));
    this.tuned =
        ExpertKernels.isHopper(CudaDeviceProvider.capability(device.info()))
            && config.weightDtype() == DType.BF16;
    this.weights = new MarlinWeights(device, kernels, config, given);
    try {
      this.products = new MarlinProducts(kernels, shared, config, experts, weights);
      this.narrow = heights(device, MarlinKernels.NARROW);
      this.wide = heights(device, MarlinKernels.WIDE);
      this.single =
          hasSingle(device, weights.first().layout())
              && hasSingle(device, weights.second().layout());
    } catch (RuntimeException | Error e) {
      weights.close(); // nobody else could
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
   * @param choice of plans
   * @return the experts, owned by the caller
   */
  static ModularExperts prepare(
      MoeConfig config,
      ExpertWeights weights,
      CudaDevice device,
      LoraMode mode,
      Function<MarlinPlan.Problem, MarlinPlan> choice) {
    ExpertKernels shared = new ExpertKernels(device);
    MarlinExperts own = new MarlinExperts(config, weights, device, shared, choice);
    return new GroupedExperts(config, device, shared, weights.numExperts(), mode, own);
  }

  private List<Integer> heights(CudaDevice device, String kind) {
    List<Integer> second =
        MarlinKernels.heights(
            device.info(), kind, weights.second().layout().formatName(), config.weightDtype());
    return MarlinKernels.heights(
            device.info(), kind, weights.first().layout().formatName(), config.weightDtype())
        .stream()
        .filter(second::contains)
        .toList();
  }

  private boolean hasSingle(CudaDevice device, PackedLayout w) {
    return MarlinKernels.hasSingle(device.info(), w.formatName(), config.weightDtype());
  }

  @Override
  public long ownBytes(long pairs, boolean composed) {
    return orderedBytes(weights.first(), pairs) + orderedBytes(weights.second(), pairs);
  }

  /** Room for the rows of a product in the order of its groups; 0 = x is read as it is. */
  static long orderedBytes(PackedMatrices w, long pairs) {
    return w.orders() == null ? 0 : Workspace.align(ELEMENT * pairs * w.layout().in());
  }

  @Override
  public Forward forward(GroupedForward f) {
    MarlinPlan.Problem problem =
        new MarlinPlan.Problem(
            narrow,
            wide,
            single,
            weights.first().layout(),
            weights.second().layout(),
            config.activation().isGated(),
            f.tokensHere(),
            f.batch().topK(),
            experts,
            sizes.hidden(),
            sizes.intermediate(),
            f.adapters().used(),
            f.adapters().rank(),
            f.batched(),
            tuned,
            multiprocessors);
    MarlinPlan plan = choice.apply(problem);
    if (f.composed()) {
      plan = plan.composed(problem);
    }
    return products.forward(plan, plan.tileRows(problem), f);
  }

  @Override
  public List<Fact> facts() {
    return List.of(
        new Fact(
            "weights",
            "packed on the card for these kernels: w13 "
                + weights.first().layout().formatName()
                + ", w2 "
                + weights.second().layout().formatName(),
            weights.byteSize()));
  }

  @Override
  public void close() {
    weights.close();
  }
}
