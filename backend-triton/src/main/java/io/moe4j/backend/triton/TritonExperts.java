package io.moe4j.backend.triton;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.spi.DeviceStream;
import io.moe4j.api.spi.ExpertRouting;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.spi.LoraExperts;
import io.moe4j.api.spi.Workspace;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.ElementwiseKernels;
import java.util.Optional;
import org.jspecify.annotations.Nullable;

/**
 * Prepared experts, STANDARD or BATCHED. The way of a token (boxes are launches, all asynchronous):
 *
 * <pre>
 *   ids, slots -> [clear, count, place (, scatter)]     pairs by (expert, slot), tiles, rank pages
 *   hidden     -> [shrink]      s = x . A^T             rows with an adapter only
 *              -> [gemm w13]    f(x . w13^T + s . B^T)  the expand rides in the accumulator
 *              -> [shrink] -> [gemm w2] -> [combine]    weighted sum over k in f32
 * </pre>
 *
 * With few pairs each pair is a tile and nothing is sorted. A BATCHED call is the same with the
 * rows of each expert as its pairs. Results do not vary from run to run: every sum has a fixed
 * order. Nothing is allocated on the device, read by the host or waited for, so a forward can be
 * captured once its kernels are loaded (run it once before).
 */
final class TritonExperts implements LoraExperts {
  private static final int ALIGNMENT = 16;

  private final MoeConfig config;
  private final CudaDevice device;
  private final TritonKernels kernels;
  private final ElementwiseKernels casts;
  private final ExpertMatrices matrices;
  private final @Nullable SlotTables slots;
  private final SortLaunches sort;
  private final GemmLaunches gemm;
  private final int experts;
  private volatile boolean closed;

  TritonExperts(MoeConfig config, ExpertWeights weights, CudaDevice device) {
    this.config = config;
    this.device = device;
    this.experts = weights.numExperts();
    this.kernels = new TritonKernels(device);
    this.casts = new ElementwiseKernels(device);
    this.matrices = new ExpertMatrices(device, config, weights);
    this.slots =
        config.lora().map(l -> new SlotTables(device, kernels, config, l.maxLoras())).orElse(null);
    this.sort = new SortLaunches(kernels, config, experts);
    this.gemm = new GemmLaunches(kernels, config, experts, matrices);
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
        config.expertHiddenSize(),
        config.intermediateSize(),
        config.activation().isGated(),
        slotCount,
        rank,
        copy,
        outputBytes,
        batched());
  }

  @Override
  public long workspaceBytes(int maxTokens) {
    int tokens = batched() ? Math.multiplyExact(experts, maxTokens) : maxTokens;
    int topK = batched() ? 1 : config.topK();
    LoraConfig lora = config.lora().orElse(null);
    // A page more than maxRank can round to, for packed factors.
    int rank = lora == null ? 0 : Math.ceilDiv(lora.maxRank(), 16) * 16;
    return layout(tokens, topK, lora == null ? 0 : lora.maxLoras(), rank, true, Float.BYTES)
        .byteSize();
  }

  @Override
  public void apply(
      ExpertsInputs inputs,
      Optional<MoeLoraContext> lora,
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
    requireOutput(inputs.output());
    MoeLoraContext context = lora.filter(MoeLoraContext::hasLora).orElse(null);
    SlotTable table = null;
    int slotCount = 0;
    int rank = 0;
    if (context != null) {
      if (slots == null) {
        throw new IllegalArgumentException(
            "a forward with adapters, but the layer was prepared with LoRA off");
      }
      table = slots.of(context, stream);
      rank = table.maxRank();
      slotCount = rank == 0 ? 0 : table.slots();
    }
    boolean copy =
        hidden.dtype() != config.weightDtype() || hidden.deviceAddress() % ALIGNMENT != 0;
    int topK = batched() ? 1 : Math.toIntExact(inputs.requireRouting().topkIds().size(1));
    Tensor output = inputs.output();
    boolean away = output.deviceAddress() % ALIGNMENT != 0;
    ForwardLayout at =
        layout(
            tokens,
            topK,
            slotCount,
            rank,
            copy,
            away ? Math.toIntExact(output.dtype().byteSize(1)) : 0);
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
    long x = hidden.deviceAddress();
    if (copy) {
      Tensor flat = hidden.reshape(tokens, config.expertHiddenSize());
      Tensor room =
          workspace.tensor(at.hidden, config.weightDtype(), tokens, config.expertHiddenSize());
      casts.cast(flat, room, stream);
      x = room.deviceAddress();
    }
    Tensor target = away ? workspace.tensor(at.output, output.dtype(), output.shape()) : output;
    if (away && batched()) {
      device.copy(output, target, stream); // rows past the counts come back as they were
    }
    TilePlan plan =
        TileTable.choose(
            new TileTable.Problem(
                TritonKernels.tuned(device.info(), config.weightDtype()),
                TritonKernels.portableStages(device.info()),
                config.activation().isGated(),
                tokens,
                topK,
                experts,
                config.expertHiddenSize(),
                config.intermediateSize(),
                slotCount == 0 || table == null ? 0 : Math.max(1, table.used()),
                rank,
                batched()));
    ExpertRouting routing = inputs.routing();
    long map = routing == null ? 0 : Forward.orNull(routing.expertMap());
    Tensor globals = routing == null ? null : routing.expertMap();
    Forward f =
        new Forward(
            plan,
            at,
            base,
            stream,
            x,
            routing == null ? base + at.ids : routing.topkIds().deviceAddress(),
            routing == null ? 0 : routing.topkWeights().deviceAddress(),
            map,
            slotCount == 0 || context == null ? 0 : context.tokenLoraMapping().deviceAddress(),
            target,
            batched(),
            tokens,
            topK,
            globals == null ? experts : Math.toIntExact(globals.size(0)),
            slotCount == 0 || table == null ? 0 : table.address(),
            slotCount,
            rank);
    if (batched()) {
      sort.batchedIds(f, inputs.expertNumTokens(), Math.toIntExact(hidden.size(1)));
    }
    sort.run(f);
    gemm.run(f);
    if (away) {
      device.copy(target, output, stream);
    }
  }

  private void requireOutput(Tensor output) {
    if (output.dtype() != config.weightDtype() && output.dtype() != DType.F32) {
      throw new IllegalArgumentException(
          "output is " + output + ", must be " + config.weightDtype() + " or F32");
    }
  }

  @Override
  public synchronized void close() {
    if (!closed) {
      closed = true;
      if (slots != null) {
        slots.close();
      }
      matrices.close();
    }
  }
}
