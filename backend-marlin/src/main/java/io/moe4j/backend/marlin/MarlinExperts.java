package io.moe4j.backend.marlin;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.spi.Fact;
import io.moe4j.api.spi.LoraExperts;
import io.moe4j.api.spi.ModularExperts;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaDeviceProvider;
import io.moe4j.cuda.ops.AdaptersInUse;
import io.moe4j.cuda.ops.ComposedLora;
import io.moe4j.cuda.ops.ExpertKernels;
import io.moe4j.cuda.ops.LoraMode;
import io.moe4j.cuda.ops.PaddedSizes;
import io.moe4j.cuda.ops.PaddedTensors;
import io.moe4j.cuda.ops.PairBatch;
import io.moe4j.cuda.ops.SlotTables;
import io.moe4j.cuda.ops.TileSort;
import java.util.List;
import java.util.function.Function;
import org.jspecify.annotations.Nullable;

/**
 * Prepared experts, STANDARD or BATCHED. The way of a token (boxes are launches, all asynchronous):
 *
 * <pre>
 *   ids, slots -> [sort]                                pairs by (expert, slot), tiles, rank pages
 *   hidden     -> [order]                               act-order only
 *              -> [shrink]      s = x . A^T             rows with an adapter only
 *              -> [w13]         f(x . w13^T + s . B^T)  the expand rides in the accumulator
 *              -> [order] -> [shrink] -> [w2] -> [combine]    weighted sum over k in f32
 * </pre>
 *
 * With few pairs each pair is a tile and nothing is sorted. A BATCHED call is the same with the
 * rows of each expert as its pairs. A layer may also leave deltas to its contexts' punica wrappers
 * ({@link LoraMode}, {@link ComposedLora}). Results do not vary from run to run: every sum has a
 * fixed order. Nothing is allocated on the device, read by the host or waited for, so a forward can
 * be captured once its kernels are loaded (run it once before).
 */
final class MarlinExperts implements ModularExperts, LoraExperts {
  private final MoeConfig config;
  private final PaddedSizes sizes;
  private final PaddedTensors padded;
  private final MarlinWeights weights;
  private final @Nullable SlotTables slots;
  private final TileSort sort;
  private final MarlinProducts products;
  private final int experts;
  private final List<Integer> narrow;
  private final List<Integer> wide;
  private final boolean tuned;
  private final int multiprocessors;
  private final Function<MarlinPlan.Problem, MarlinPlan> choice;
  private final LoraMode mode;
  private final @Nullable ComposedLora composed;
  private volatile boolean closed;

  MarlinExperts(
      MoeConfig config,
      ExpertWeights given,
      CudaDevice device,
      LoraMode mode,
      Function<MarlinPlan.Problem, MarlinPlan> choice) {
    this.config = config;
    this.mode = mode;
    this.choice = choice;
    this.experts = given.numExperts();
    this.sizes = PaddedSizes.of(config);
    ExpertKernels shared = new ExpertKernels(device);
    MarlinKernels kernels = new MarlinKernels(device);
    this.padded = new PaddedTensors(device, shared, config, batched());
    this.weights = new MarlinWeights(device, kernels, config, given);
    this.multiprocessors =
        Integer.parseInt(device.info().properties().getOrDefault("multiprocessors", "1"));
    try {
      boolean fused = mode == LoraMode.FUSED;
      this.slots =
          config
              .lora()
              .filter(l -> fused)
              .map(l -> new SlotTables(device, shared, config, l.maxLoras()))
              .orElse(null);
      this.sort = new TileSort(shared);
      this.products = new MarlinProducts(kernels, shared, config, experts, weights);
      this.narrow = heights(device, MarlinKernels.NARROW);
      this.wide = heights(device, MarlinKernels.WIDE);
      this.composed =
          fused || config.lora().isEmpty()
              ? null
              : new ComposedLora(device, config, experts, this, mode);
    } catch (RuntimeException | Error e) {
      weights.close(); // nobody else could
      throw e;
    }
    this.tuned =
        ExpertKernels.isHopper(CudaDeviceProvider.capability(device.info()))
            && config.weightDtype() == DType.BF16;
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

  private boolean batched() {
    return config.activationFormat() == ActivationFormat.BATCHED;
  }

  private MarlinLayout layout(
      int tokens, int topK, int slotCount, int rank, boolean copy, int outputBytes) {
    return new MarlinLayout(
        new MarlinLayout.Sizes(
            tokens,
            topK,
            experts,
            sizes,
            config.activation().isGated(),
            orderedInputs(weights.first()),
            orderedInputs(weights.second()),
            batched(),
            composed == null
                ? -1
                : ComposedLora.mostBeside(mode, Math.multiplyExact(tokens, topK))),
        slotCount,
        rank,
        copy,
        outputBytes);
  }

  private static long orderedInputs(PackedMatrices w) {
    return w.orders() == null ? 0 : w.layout().in();
  }

  @Override
  public long workspaceBytes(int maxTokens) {
    int tokens = batched() ? Math.multiplyExact(experts, maxTokens) : maxTokens;
    LoraConfig lora = slots == null ? null : config.lora().orElse(null);
    int slotCount = lora == null ? 0 : lora.maxLoras();
    int rank = lora == null ? 0 : largestRank();
    return layout(tokens, batched() ? 1 : config.topK(), slotCount, rank, true, Float.BYTES)
        .byteSize();
  }

  /** The configured one, padded to a page; 0 without LoRA. */
  private int largestRank() {
    return config.lora().map(l -> AdaptersInUse.padded(l.maxRank())).orElse(0);
  }

  @Override
  public void refresh(MoeLoraContext context, DeviceStream stream) {
    if (slots != null) {
      slots.of(context, stream);
    } else if (composed != null) {
      context.punicaWrapper().prepare(context, stream);
    }
  }

  @Override
  public void apply(
      ExpertsInputs inputs,
      @Nullable MoeLoraContext lora,
      Workspace workspace,
      DeviceStream stream) {
    if (closed) {
      throw new IllegalStateException("these experts are closed");
    }
    Tensor hidden = inputs.hidden();
    int tokens = Math.toIntExact(batched() ? hidden.size(0) * hidden.size(1) : hidden.size(0));
    if (tokens == 0) {
      return;
    }
    MoeLoraContext context = lora == null || !lora.hasLora() ? null : lora;
    AdaptersInUse adapters =
        composed == null
            ? AdaptersInUse.of(slots, context, largestRank(), stream)
            : AdaptersInUse.NONE;
    int topK = batched() ? 1 : Math.toIntExact(inputs.requireRouting().topkIds().size(1));
    Tensor output = inputs.output();
    MarlinLayout at =
        layout(
            tokens,
            topK,
            adapters.slots(),
            adapters.rank(),
            padded.movesIn(hidden),
            padded.bytesOut(output));
    if (workspace.memory().byteSize() < at.byteSize()) {
      throw new IllegalArgumentException(
          "the workspace has "
              + workspace.memory().byteSize()
              + " bytes, "
              + tokens
              + " tokens need "
              + at.byteSize());
    }
    long base = ((DeviceMemory) workspace.memory()).address();
    long x = padded.in(hidden, tokens, at.hidden, workspace, stream);
    Tensor target = padded.target(output, tokens, at.output, at.y, workspace, stream);
    MarlinPlan.Problem problem =
        new MarlinPlan.Problem(
            narrow,
            wide,
            weights.first().layout(),
            weights.second().layout(),
            config.activation().isGated(),
            PairBatch.tokensHere(tokens, experts, inputs.routing()),
            topK,
            experts,
            sizes.hidden(),
            sizes.intermediate(),
            adapters.used(),
            adapters.rank(),
            batched(),
            tuned,
            multiprocessors);
    MarlinPlan plan = choice.apply(problem);
    if (composed != null) {
      plan = plan.composed(problem);
    }
    int tileRows = plan.tileRows(problem);
    PairBatch batch =
        PairBatch.of(
            inputs.routing(), base + at.ids, base + at.slotOf, tokens, experts, adapters, stream);
    if (batched()) {
      sort.batchedIds(
          batch, inputs.expertNumTokens(), adapters.mapping(), Math.toIntExact(hidden.size(1)));
    }
    if (!plan.naive()) {
      sort.run(batch, at.lists, base, tileRows, plan.shrinks());
    }
    MarlinProducts.Forward f =
        new MarlinProducts.Forward(plan, tileRows, at, base, batch, x, target, batched());
    if (composed != null) {
      composed.run(
          new ComposedLora.Rows(
              batch, plan.naive(), at.lists, x, at.ids, at.sorted, at.middle, at.y, at.composed),
          products.plain(f),
          inputs.routing(),
          context,
          workspace);
    } else {
      products.run(f);
    }
    padded.out(target, output, tokens, at.y, workspace, stream);
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
  public synchronized void close() {
    if (!closed) {
      closed = true;
      if (slots != null) {
        slots.close();
      }
      if (composed != null) {
        composed.close();
      }
      weights.close();
    }
  }
}
