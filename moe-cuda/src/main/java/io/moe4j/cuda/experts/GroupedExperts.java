package io.moe4j.cuda.experts;

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
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.ops.AdaptersInUse;
import io.moe4j.cuda.ops.ComposedLora;
import io.moe4j.cuda.ops.ExpertKernels;
import io.moe4j.cuda.ops.LoraMode;
import io.moe4j.cuda.ops.PaddedSizes;
import io.moe4j.cuda.ops.PaddedTensors;
import io.moe4j.cuda.ops.PairBatch;
import io.moe4j.cuda.ops.PeerLink;
import io.moe4j.cuda.ops.SlotTables;
import io.moe4j.cuda.ops.TileSort;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * Prepared experts, STANDARD or BATCHED, around a backend's products. The way of a token (boxes are
 * launches, all asynchronous):
 *
 * <pre>
 *   ids, slots -> [sort]                                pairs by (expert, slot), tiles, rank pages
 *   hidden     -> [shrink]      s = x . A^T             rows with an adapter only
 *              -> [w13]         f(x . w13^T + s . B^T)  the expand rides in the accumulator
 *              -> [shrink] -> [w2] -> [combine]         weighted sum over k in f32
 * </pre>
 *
 * With few pairs each pair is a tile and nothing is sorted. A BATCHED call is the same with the
 * rows of each expert as its pairs. A layer may also leave deltas to its contexts' punica wrappers
 * ({@link LoraMode}, {@link ComposedLora}). Results do not vary from run to run: every sum has a
 * fixed order. Nothing is allocated on the device, read by the host or waited for, so a forward can
 * be captured once its kernels are loaded (run it once before). Safe for several threads.
 *
 * @since 0.2.0
 */
public final class GroupedExperts implements ModularExperts, LoraExperts {
  private final MoeConfig config;
  private final int experts;
  private final LoraMode mode;
  private final GroupedProducts products;
  private final PaddedSizes sizes;
  private final PaddedTensors padded;
  private final @Nullable SlotTables slots;
  private final TileSort sort;
  private final @Nullable ComposedLora composed;
  private volatile boolean closed;

  /**
   * Loads the kernels that are the same for all.
   *
   * @param config of the layer, with weights of BF16 or F16
   * @param device where to run
   * @param shared kernels of that device
   * @param experts local
   * @param mode who adds LoRA deltas
   * @param products closed with these experts, and if this fails
   */
  public GroupedExperts(
      MoeConfig config,
      CudaDevice device,
      ExpertKernels shared,
      int experts,
      LoraMode mode,
      GroupedProducts products) {
    this.config = config;
    this.experts = experts;
    this.mode = mode;
    this.products = products;
    this.sizes = PaddedSizes.of(config);
    try {
      this.padded = new PaddedTensors(device, shared, config, batched());
      boolean fused = mode == LoraMode.FUSED;
      this.slots =
          config
              .lora()
              .filter(l -> fused)
              .map(l -> new SlotTables(device, shared, config, l.maxLoras()))
              .orElse(null);
      this.sort = new TileSort(shared);
      this.composed =
          fused || config.lora().isEmpty()
              ? null
              : new ComposedLora(device, config, experts, this, mode);
    } catch (RuntimeException | Error e) {
      products.close(); // nobody else could
      throw e;
    }
  }

  private boolean batched() {
    return config.activationFormat() == ActivationFormat.BATCHED;
  }

  private ForwardLayout layout(
      int tokens, int topK, int slotCount, int rank, boolean copy, int outputBytes) {
    return new ForwardLayout(
        new ForwardLayout.Sizes(
            tokens,
            topK,
            experts,
            sizes,
            config.activation().isGated(),
            batched(),
            slotCount,
            rank,
            copy,
            outputBytes,
            products.ownBytes((long) tokens * topK, composed != null),
            composed == null
                ? -1
                : ComposedLora.mostBeside(mode, Math.multiplyExact(tokens, topK))));
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
      slots.of(context, stream).close();
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
    if (composed != null || context == null) {
      apply(inputs, tokens, context, AdaptersInUse.NONE, workspace, stream);
      return;
    }
    if (slots == null) {
      throw new IllegalArgumentException(
          "a forward with adapters, but the layer was prepared with LoRA off");
    }
    try (SlotTables.Use use = slots.of(context, stream)) {
      AdaptersInUse adapters = AdaptersInUse.of(use.table(), context, largestRank(), stream);
      apply(inputs, tokens, context, adapters, workspace, stream);
    }
  }

  private void apply(
      ExpertsInputs inputs,
      int tokens,
      @Nullable MoeLoraContext context,
      AdaptersInUse adapters,
      Workspace workspace,
      DeviceStream stream) {
    Tensor hidden = inputs.hidden();
    int topK = batched() ? 1 : Math.toIntExact(inputs.requireRouting().topkIds().size(1));
    Tensor output = inputs.output();
    ForwardLayout at =
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
    long x = padded.in(hidden, tokens, at.hidden(), workspace, stream);
    Tensor target = padded.target(output, tokens, at.output(), at.y(), workspace, stream);
    PairBatch batch =
        PairBatch.of(
            inputs.routing(),
            base + at.ids(),
            base + at.slotOf(),
            tokens,
            experts,
            adapters,
            stream);
    PeerLink link = inputs.link() instanceof PeerLink peers ? peers : null;
    GroupedProducts.Forward f =
        products.forward(
            new GroupedForward(
                PairBatch.tokensHere(tokens, experts, inputs.routing()),
                adapters,
                composed != null,
                at,
                base,
                batch,
                x,
                target,
                batched(),
                // A padded sum is not what the exchange is to add.
                padded.bytesOut(output) == 0 ? link : null));
    if (batched()) {
      sort.batchedIds(
          batch, inputs.expertNumTokens(), adapters.mapping(), Math.toIntExact(hidden.size(1)));
    }
    if (!f.naive()) {
      sort.run(batch, at.lists(), base, f.tileRows(), f.shrinks());
      f.sorted(sort);
    }
    if (composed != null) {
      composed.run(
          new ComposedLora.Rows(
              batch,
              f.naive(),
              at.lists(),
              x,
              at.ids(),
              at.sorted(),
              at.middle(),
              at.y(),
              at.composed()),
          f.plain(),
          inputs.routing(),
          context,
          workspace);
    } else {
      f.run();
    }
    padded.out(target, output, tokens, at.y(), workspace, stream);
  }

  @Override
  public List<Fact> facts() {
    return products.facts();
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
      products.close();
    }
  }
}
