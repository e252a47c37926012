package io.moe4j.backend.flashinfer;

import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.device.WorkspaceLayout;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.LoraExperts;
import io.moe4j.api.spi.MonolithicExperts;
import io.moe4j.api.spi.MonolithicInputs;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import java.util.Arrays;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * Prepared experts of {@code flashinfer-trtllm}. Without adapters in the batch a forward is our
 * routing and one call into FlashInfer. With some, the deltas of gate and up are computed first and
 * handed to that call, which adds them before the activation; the call then stops before its
 * weighted sum, the rows are fetched into the order of the pairs, the deltas of down are added, and
 * the sum is ours. FlashInfer takes its scratch from the device's pool.
 */
final class TrtllmExperts implements MonolithicExperts, LoraExperts {
  /** What copies by tensor maps want of a tensor's address. */
  private static final int TENSOR_ALIGNMENT = 16;

  private final MoeConfig config;
  private final Device device;
  private final CardKernels kernels;
  private final CardKernels.Router router;
  private final DeviceTensors constants;
  private final TrtllmScheme scheme;
  private final TrtllmRunner runner;
  private final TrtllmRunner.Layer layer;
  private final @Nullable Tensor expertMap;
  private final ExpertBlock block;
  private final long hidden;
  private final long intermediate;
  private volatile boolean closed;

  /**
   * @param config the layer, supported
   * @param experts fits {@code config}
   * @param device open
   * @param kernels around the module's
   * @param module for the device
   */
  TrtllmExperts(
      MoeConfig config,
      ExpertWeights experts,
      Device device,
      CardKernels kernels,
      FlashInferModule module) {
    this.config = config;
    this.device = device;
    this.kernels = kernels;
    this.block = ExpertBlock.of(config).orElseThrow();
    this.hidden = config.expertHiddenSize();
    this.intermediate = config.intermediateSize();
    this.router = kernels.router(config.routing(), config.numExperts(), config.topK());
    this.scheme = TrtllmScheme.of(config).orElseThrow();
    this.runner = new TrtllmRunner(module, scheme);
    this.constants = new DeviceTensors(device);
    try {
      MoeActivation a = MoeActivation.of(config.activation()).orElseThrow();
      this.layer =
          new TrtllmRunner.Layer(
              TrtllmRunner.Matrices.of(config, experts, scheme, constants),
              a.parameters() ? forEach(a.alpha()) : null,
              a.parameters() ? forEach(a.beta()) : null,
              a.parameters() ? forEach(a.limit()) : null,
              scheme.padded(intermediate),
              block,
              config.topK());
      this.expertMap = config.expertMap().map(this::onDevice).orElse(null);
    } catch (RuntimeException | Error e) {
      constants.close();
      runner.close();
      throw e;
    }
  }

  private Tensor forEach(float value) {
    float[] all = new float[block.local()];
    Arrays.fill(all, value);
    return constants.floats(all, all.length);
  }

  private Tensor onDevice(ExpertMap map) {
    Tensor to = constants.allocate(DType.I32, map.numGlobalExperts());
    constants.copy(Tensor.ofInts(map.toArray(), map.numGlobalExperts()), to);
    return to;
  }

  /**
   * The parts of a call's workspace. What the deltas of the first product are made in is used again
   * for what comes back.
   */
  private final class Rooms {
    final WorkspaceLayout layout = new WorkspaceLayout();
    final int tokens;
    private final WorkspaceLayout.Part logits;
    private final WorkspaceLayout.Part ids;
    private final WorkspaceLayout.Part topkWeights;
    private final WorkspaceLayout.Part packed;
    private final WorkspaceLayout.Part unpacked;
    private final WorkspaceLayout.Part cast;
    private final WorkspaceLayout.Part input;
    private final WorkspaceLayout.Part output;
    private final WorkspaceLayout.Part codes;
    private final WorkspaceLayout.Part scales;
    private final WorkspaceLayout.Part first;
    private final WorkspaceLayout.Part second;

    Rooms(int tokens) {
      this.tokens = tokens;
      long pairs = config.lora().isPresent() ? (long) tokens * config.topK() : 0;
      logits = layout.reserve(DType.F32, tokens, config.numExperts());
      ids = layout.reserve(DType.I32, tokens, config.topK());
      topkWeights = layout.reserve(DType.F32, tokens, config.topK());
      packed = layout.reserve(DType.I32, scheme.packsRouting() ? tokens : 0, config.topK());
      unpacked = layout.reserve(DType.BF16, scheme.packsRouting() ? tokens : 0, config.topK());
      cast = layout.reserve(DType.BF16, tokens, hidden);
      input = layout.reserve(DType.BF16, tokens, scheme.padded(hidden));
      output = layout.reserve(DType.BF16, tokens, scheme.padded(hidden));
      TrtllmScheme.Input kind = scheme.input();
      long wide = kind == TrtllmScheme.Input.AS_IS ? 0 : scheme.padded(hidden);
      boolean four = kind == TrtllmScheme.Input.NVFP4;
      codes = layout.reserve(four ? DType.U8 : DType.F8_E4M3, tokens, four ? wide / 2 : wide);
      long groups = kind.group() == 0 ? 0 : wide / kind.group();
      scales =
          kind == TrtllmScheme.Input.FP8_BLOCK
              ? layout.reserve(DType.F32, groups, tokens)
              : layout.reserve(scheme.scales(), tokens, groups);
      first = layout.reserve(DType.BF16, pairs, 2 * intermediate);
      second = layout.reserve(DType.BF16, pairs, Math.max(2 * scheme.padded(intermediate), hidden));
    }
  }

  @Override
  public long workspaceBytes(int maxTokens) {
    return maxTokens == 0 ? 0 : new Rooms(maxTokens).layout.byteSize();
  }

  @Override
  public void apply(
      MonolithicInputs inputs,
      @Nullable MoeLoraContext lora,
      Workspace workspace,
      DeviceStream stream) {
    if (closed) {
      throw new IllegalStateException("these experts are closed");
    }
    int tokens = Math.toIntExact(inputs.hidden().size(0));
    if (tokens == 0) {
      return;
    }
    Rooms rooms = new Rooms(tokens);
    ExpertRouting routing = route(inputs, rooms, workspace, stream);
    Tensor x = input(inputs.hidden(), rooms, workspace, stream);
    if (lora == null || !lora.hasLora()) {
      sum(x, routing, inputs.output(), rooms, workspace, stream);
    } else {
      sumWithDeltas(x, routing, lora, inputs.output(), rooms, workspace, stream);
    }
  }

  private ExpertRouting route(
      MonolithicInputs inputs, Rooms rooms, Workspace workspace, DeviceStream stream) {
    Tensor logits = inputs.routerLogits();
    if (logits.dtype() != DType.F32) {
      Tensor wide = rooms.logits.in(workspace);
      kernels.cast(logits, wide, stream);
      logits = wide;
    }
    Tensor ids = rooms.ids.in(workspace);
    Tensor topkWeights = rooms.topkWeights.in(workspace);
    router.route(logits, inputs.correctionBias(), ids, topkWeights, stream);
    return new ExpertRouting(ids, topkWeights, expertMap);
  }

  /** Hidden states in BF16. */
  private Tensor input(Tensor given, Rooms rooms, Workspace workspace, DeviceStream stream) {
    if (given.dtype() == DType.BF16 && given.deviceAddress() % TENSOR_ALIGNMENT == 0) {
      return given;
    }
    Tensor to = rooms.cast.in(workspace);
    kernels.cast(given, to, stream);
    return to;
  }

  private Tensor padded(Tensor x, Rooms rooms, Workspace workspace, DeviceStream stream) {
    if (hidden == scheme.padded(hidden)) {
      return x;
    }
    Tensor to = rooms.input.in(workspace);
    kernels.rows(CardKernels.Rows.resized(x, to), stream);
    return to;
  }

  private void sum(
      Tensor x,
      ExpertRouting routing,
      Tensor output,
      Rooms rooms,
      Workspace workspace,
      DeviceStream stream) {
    boolean whole = hidden == scheme.padded(hidden);
    boolean direct =
        whole && output.dtype() == DType.BF16 && output.deviceAddress() % TENSOR_ALIGNMENT == 0;
    Tensor target = direct ? output : rooms.output.in(workspace);
    TrtllmRunner.Forward forward = forward(x, routing, target, rooms, workspace, stream);
    try (TvmCall _ = TvmCall.on(device, stream)) {
      runner.run(forward, layer);
    }
    if (direct) {
      return;
    }
    Tensor narrow = target;
    if (!whole) {
      // Where the call read its input from, which it has done.
      narrow =
          output.dtype() == DType.BF16 ? output : rooms.input.in(workspace, rooms.tokens, hidden);
      kernels.rows(CardKernels.Rows.resized(target, narrow), stream);
    }
    if (narrow != output) {
      kernels.cast(narrow, output, stream);
    }
  }

  private TrtllmRunner.Forward forward(
      Tensor x,
      ExpertRouting routing,
      Tensor target,
      Rooms rooms,
      Workspace workspace,
      DeviceStream stream) {
    Tensor wide = padded(x, rooms, workspace, stream);
    Tensor codes = rooms.codes.in(workspace);
    Tensor scales = scheme.input().group() == 0 ? null : rooms.scales.in(workspace);
    switch (scheme.input()) {
      case AS_IS -> codes = wide;
      case FP8 -> kernels.quantize(wide, codes, inputScale(), false, stream);
      case FP8_BLOCK -> kernels.quantizeBlocks(wide, codes, nonNull(scales), stream);
      case MXFP8 -> kernels.quantizeMx(wide, codes, nonNull(scales), stream);
      case NVFP4 -> kernels.quantizeNv(wide, codes, nonNull(scales), inputScale(), stream);
    }
    if (!scheme.packsRouting()) {
      return new TrtllmRunner.Forward(
          codes, scales, routing.topkIds(), routing.topkWeights(), target);
    }
    Tensor packed = rooms.packed.in(workspace);
    kernels.packRouting(routing.topkIds(), routing.topkWeights(), packed, stream);
    return new TrtllmRunner.Forward(codes, scales, packed, rooms.unpacked.in(workspace), target);
  }

  private Tensor inputScale() {
    return nonNull(layer.matrices().each()).input();
  }

  private static <T> T nonNull(@Nullable T value) {
    return Objects.requireNonNull(value);
  }

  private void sumWithDeltas(
      Tensor x,
      ExpertRouting routing,
      MoeLoraContext adapters,
      Tensor output,
      Rooms rooms,
      Workspace workspace,
      DeviceStream stream) {
    long tokens = rooms.tokens;
    long topK = config.topK();
    long pairs = tokens * topK;
    Tensor deltas = rooms.first.in(workspace, pairs, 2 * intermediate);
    kernels.rows(CardKernels.Rows.zeros(deltas), stream);
    applyW13Lora(
        PunicaWrapper.W13
            .of(
                adapters,
                deltas.reshape(tokens, topK, 2 * intermediate),
                x,
                routing,
                true,
                GateUpLayout.HALVES)
            .withAddInputs(false),
        stream);
    // FlashInfer has up in front of gate.
    long wide = scheme.padded(intermediate);
    Tensor ordered = rooms.second.in(workspace, pairs, 2 * wide);
    kernels.rows(new CardKernels.Rows(deltas, null, ordered, 2, true), stream);

    Tensor activations = rooms.first.in(workspace, pairs, intermediate);
    Tensor product = rooms.second.in(workspace, pairs, hidden);
    TrtllmRunner.Forward forward =
        forward(x, routing, rooms.output.in(workspace), rooms, workspace, stream);
    try (TvmCall _ = TvmCall.on(device, stream);
        TrtllmRunner.Pairs rows =
            runner.runPairs(forward, layer, ordered.reshape(tokens, topK, 2 * wide))) {
      kernels.rows(
          CardKernels.Rows.fetched(rows.activations(), rows.places(), activations), stream);
      kernels.rows(CardKernels.Rows.fetched(rows.product(), rows.places(), product), stream);
    }
    applyW2Lora(
        PunicaWrapper.W2.of(adapters, product.reshape(tokens, topK, hidden), activations, routing),
        stream);
    kernels.combine(product, routing, block.local(), output, stream);
  }

  @Override
  public void close() {
    if (closed) {
      return;
    }
    closed = true;
    runner.close();
    constants.close();
  }
}
