package io.moe4j.backend.triton.launch;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.spi.Fact;
import io.moe4j.api.spi.LoraExperts;
import io.moe4j.api.spi.ModularExperts;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.backend.triton.tiles.TileChoice;
import io.moe4j.backend.triton.tiles.TilePlan;
import io.moe4j.backend.triton.tiles.TileTable;
import io.moe4j.cuda.CudaDevice;
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
import org.jspecify.annotations.Nullable;

/**
 * Prepared experts, STANDARD or BATCHED. The way of a token (boxes are launches, all asynchronous):
 *
 * <pre>
 *   ids, slots -> [sort]                                pairs by (expert, slot), tiles, rank pages
 *   hidden     -> [shrink]      s = x . A^T             rows with an adapter only
 *              -> [gemm w13]    f(x . w13^T + s . B^T)  the expand rides in the accumulator
 *              -> [shrink] -> [gemm w2] -> [combine]    weighted sum over k in f32
 * </pre>
 *
 * With few pairs each pair is a tile and nothing is sorted. A BATCHED call is the same with the
 * rows of each expert as its pairs. A layer may also leave deltas to its contexts' punica wrappers
 * ({@link LoraMode}, {@link ComposedLora}). Results do not vary from run to run: every sum has a
 * fixed order. Nothing is allocated on the device, read by the host or waited for, so a forward can
 * be captured once its kernels are loaded (run it once before).
 */
public final class TritonExperts implements ModularExperts, LoraExperts {
  private final MoeConfig config;
  private final CudaDevice device;
  private final PaddedSizes sizes;
  private final PaddedTensors padded;
  private final ExpertMatrices matrices;
  private final @Nullable SlotTables slots;
  private final TileSort sort;
  private final GemmLaunches gemm;
  private final int experts;
  private final LoraMode mode;
  private final @Nullable ComposedLora composed;
  private final TileChoice tiles;
  private volatile boolean closed;

  public TritonExperts(
      MoeConfig config, ExpertWeights weights, CudaDevice device, LoraMode mode, TileChoice tiles) {
    this.tiles = tiles;
    this.mode = mode;
    this.config = config;
    this.device = device;
    this.experts = weights.numExperts();
    ExpertKernels shared = new ExpertKernels(device);
    this.sizes = PaddedSizes.of(config);
    this.padded = new PaddedTensors(device, shared, config, batched());
    this.matrices = new ExpertMatrices(device, config, weights);
    try {
      boolean fused = mode == LoraMode.FUSED;
      this.slots =
          config
              .lora()
              .filter(l -> fused)
              .map(l -> new SlotTables(device, shared, config, l.maxLoras()))
              .orElse(null);
      this.sort = new TileSort(shared);
      this.gemm =
          new GemmLaunches(new TritonKernels(device), shared, config, sizes, experts, matrices);
      this.composed =
          fused || config.lora().isEmpty()
              ? null
              : new ComposedLora(device, config, experts, this, mode);
    } catch (RuntimeException | Error e) {
      matrices.close(); // nobody else could
      throw e;
    }
  }

  private boolean batched() {
    return config.activationFormat() == ActivationFormat.BATCHED;
  }

  private ForwardLayout layout(
      int tokens, int topK, int slotCount, int rank, boolean copy, int outputBytes) {
    return new ForwardLayout(
        tokens,
        topK,
        experts,
        sizes.hidden(),
        sizes.intermediate(),
        config.activation().isGated(),
        slotCount,
        rank,
        copy,
        outputBytes,
        batched(),
        composed == null ? -1 : ComposedLora.mostBeside(mode, Math.multiplyExact(tokens, topK)));
  }

  @Override
  public long workspaceBytes(int maxTokens) {
    int tokens = batched() ? Math.multiplyExact(experts, maxTokens) : maxTokens;
    int topK = batched() ? 1 : config.topK();
    LoraConfig lora = config.lora().orElse(null);
    int slotCount = lora == null || composed != null ? 0 : lora.maxLoras();
    int rank = slotCount == 0 ? 0 : largestRank();
    return layout(tokens, topK, slotCount, rank, true, Float.BYTES).byteSize();
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
    int slotCount = adapters.slots();
    int rank = adapters.rank();
    int topK = batched() ? 1 : Math.toIntExact(inputs.requireRouting().topkIds().size(1));
    Tensor output = inputs.output();
    ForwardLayout at =
        layout(tokens, topK, slotCount, rank, padded.movesIn(hidden), padded.bytesOut(output));
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
    TileTable.Problem problem =
        new TileTable.Problem(
            TritonKernels.tuned(device.info(), config.weightDtype()),
            TritonKernels.portableStages(device.info()),
            config.activation().isGated(),
            PairBatch.tokensHere(tokens, experts, inputs.routing()),
            topK,
            experts,
            sizes.hidden(),
            sizes.intermediate(),
            adapters.used(),
            rank,
            batched(),
            ExpertMatrices.isMxfp4(config));
    TilePlan plan = tiles.choose(problem);
    if (composed != null) {
      plan = TileTable.composed(problem, plan);
    }
    ExpertRouting routing = inputs.routing();
    PairBatch batch =
        PairBatch.of(routing, base + at.ids, base + at.slotOf, tokens, experts, adapters, stream);
    Forward f = new Forward(plan, at, base, batch, x, target, batched());
    if (batched()) {
      sort.batchedIds(
          batch, inputs.expertNumTokens(), adapters.mapping(), Math.toIntExact(hidden.size(1)));
    }
    if (!plan.naive()) {
      sort.run(batch, at.lists, base, plan.tileRows(), plan.shrinks());
      if (plan.permute()) {
        sort.permute(batch, x, f.address(at.lists.posOf()), f.address(at.sorted), sizes.hidden());
      }
    }
    if (composed != null) {
      composed.run(
          new ComposedLora.Rows(
              batch, plan.naive(), at.lists, x, at.ids, at.sorted, at.middle, at.y, at.composed),
          gemm.products(f),
          routing,
          context,
          workspace);
    } else {
      gemm.run(f);
    }
    padded.out(target, output, tokens, at.y, workspace, stream);
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
  public synchronized void close() {
    if (!closed) {
      closed = true;
      if (slots != null) {
        slots.close();
      }
      if (composed != null) {
        composed.close();
      }
      matrices.close();
    }
  }
}
