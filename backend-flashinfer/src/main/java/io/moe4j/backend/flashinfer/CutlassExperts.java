package io.moe4j.backend.flashinfer;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.spi.ModularExperts;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.ConcurrentHashMap;
import java.util.function.Function;
import java.util.function.IntFunction;
import org.jspecify.annotations.Nullable;

/**
 * Prepared experts of {@code flashinfer-cutlass}. A forward is one call into FlashInfer; before it
 * hidden states are converted where they are of another dtype (or quantised, for FP8), behind it
 * the output where that is. Nothing is allocated on the device by versions that take a workspace
 * (0.6.16 and later), nothing is read by the host or waited for, so that a forward can be captured
 * once it has run; with them, forwards that come again are replayed ({@link Replays}).
 */
final class CutlassExperts implements ModularExperts {
  /** What the module wants of the workspace's address. */
  private static final int WORKSPACE_ALIGNMENT = 128;

  /** Elements that share a scale in MX formats. */
  private static final int MX_GROUP = 32;

  /** The routing of more tokens leaves no room on the card for work beside it. */
  private static final int BESIDE_ROUTING = 1024;

  /** What its copies by tensor maps want of a tensor's address. */
  private static final int TENSOR_ALIGNMENT = 16;

  /** 16-bit elements that copies move at once. */
  private static final int PACK = 8;

  private final MoeConfig config;
  private final Device device;
  private final CardKernels kernels;
  private final CutlassScheme scheme;
  private final CutlassRunner runner;
  private final CutlassWeights weights;
  private final CutlassRunner.Layer layer;
  private final ExpertBlock block;
  private final ExpertBlock localIds;
  private final long hidden;
  private final long paddedHidden;
  private final IntFunction<Tactics> tactics;
  private final Map<Integer, Long> moduleBytes = new ConcurrentHashMap<>();
  private final Replays replays;

  /** Whether the routing is made in the launch that makes the module's input. */
  private final boolean routes;

  private final @Nullable DeviceTensors parameters;
  private volatile boolean closed;

  /**
   * @param config the layer, supported
   * @param experts fits {@code config}
   * @param device open
   * @param kernels around the module's
   * @param module for the device
   * @param tactics what is chosen by number of tokens, of a runner's
   * @param options of the layer
   */
  CutlassExperts(
      MoeConfig config,
      ExpertWeights experts,
      Device device,
      CardKernels kernels,
      FlashInferModule module,
      Function<CutlassRunner, IntFunction<Tactics>> tactics,
      FlashInferOptions options) {
    this.config = config;
    this.device = device;
    this.kernels = kernels;
    this.scheme = CutlassScheme.of(config).orElseThrow();
    this.block = ExpertBlock.of(config).orElseThrow();
    this.hidden = config.expertHiddenSize();
    this.paddedHidden = scheme.padded(hidden);
    this.localIds = new ExpertBlock(block.local(), 1, 0);
    this.weights =
        new CutlassWeights(
            config, experts, scheme, device, (from, to) -> interleave(module, from, to));
    this.routes =
        inputTakesRouting(weights.inputDivisor())
            && kernels.routesInOneLaunch(config.routing(), config.numExperts(), config.topK());
    DeviceTensors constants = new DeviceTensors(device);
    CutlassRunner made = null;
    try {
      module.compileFrom(scheme);
      made =
          new CutlassRunner(module, device, scheme, config.inputDtype(), options.fusedFinalize());
      this.runner = made;
      this.tactics = tactics.apply(made);
      // What takes memory from a pool while it is recorded would keep it.
      this.replays = new Replays(device, made.takesWorkspace() ? options.replays() : 0);
      MoeActivation a = MoeActivation.of(config.activation()).orElseThrow();
      this.layer =
          new CutlassRunner.Layer(
              weights,
              weights.scales().isEmpty() ? null : module.runtime().tensors(weights.scales()),
              a.parameters() ? forEach(constants, a.alpha()) : null,
              a.parameters() ? forEach(constants, a.beta()) : null,
              a.parameters() ? forEach(constants, a.limit()) : null,
              a.number(),
              true);
    } catch (RuntimeException | Error e) {
      if (made != null) {
        made.close();
      }
      constants.close();
      weights.close();
      throw e;
    }
    this.parameters = constants;
  }

  private boolean inputTakesRouting(float divisor) {
    return switch (scheme.input()) {
      case FP8 -> divisor >= CardKernels.LEAST_SCALE && divisor <= CardKernels.MOST_SCALE;
      case MXFP8 -> false;
      // What is taken as it stands needs no launch beside the router's.
      case AS_IS -> !isWhole() && hidden % PACK == 0 && config.inputDtype() == DType.BF16;
    };
  }

  private Tensor forEach(DeviceTensors in, float value) {
    float[] all = new float[block.local()];
    java.util.Arrays.fill(all, value);
    return in.floats(all, all.length);
  }

  /** FP4 for 16-bit activations, in FlashInfer's numbers. */
  private static final int INTERLEAVE_FP4 = 1;

  private void interleave(FlashInferModule module, Tensor from, Tensor to) {
    try (FlashInferModule.Bound f =
            module.bind(
                module.function(ArgumentLists.INTERLEAVE.function()),
                java.util.List.of(ArgumentLists.INTERLEAVE));
        TvmCall _ = TvmCall.on(device, device.defaultStream())) {
      f.call(
          new NamedArguments()
              .tensor("weight", from)
              .tensor("weight_interleaved", to)
              .integer("quant_type", INTERLEAVE_FP4));
    } catch (UnavailableException e) {
      throw new io.moe4j.api.DeviceException(e.reason(), e);
    }
  }

  CutlassRunner runner() {
    return runner;
  }

  /** {@return how many forwards are recorded} */
  int recorded() {
    return replays.recorded();
  }

  private long moduleBytes(int tokens) {
    return moduleBytes.computeIfAbsent(
        tokens,
        t ->
            runner.workspaceBytes(
                t,
                paddedHidden,
                scheme.padded(config.intermediateSize()),
                config.topK(),
                block,
                layer.kind()));
  }

  /** Room for hidden states or the output in the module's dtype, one after the other. */
  private long rowBytes(long tokens) {
    return Workspace.align(Math.multiplyExact(tokens, config.inputDtype().byteSize(paddedHidden)));
  }

  /** Room for the scales of MXFP8 hidden states. */
  private long scaleBytes(long tokens) {
    return scheme.input() == CutlassScheme.Input.MXFP8
        ? Workspace.align(tokens * (hidden / MX_GROUP))
        : 0;
  }

  @Override
  public long workspaceBytes(int maxTokens) {
    if (maxTokens == 0) {
      return 0;
    }
    return WORKSPACE_ALIGNMENT
        + Workspace.align(moduleBytes(maxTokens))
        + 2 * rowBytes(maxTokens)
        + scaleBytes(maxTokens);
  }

  @Override
  public void apply(
      ExpertsInputs inputs,
      @Nullable MoeLoraContext lora,
      Workspace workspace,
      DeviceStream stream) {
    apply(inputs, lora, workspace, false, stream);
  }

  @Override
  public void applyRouted(
      ExpertsInputs inputs,
      @Nullable MoeLoraContext lora,
      Workspace workspace,
      DeviceStream stream) {
    apply(inputs, lora, workspace, inputs.hidden().size(0) <= BESIDE_ROUTING, stream);
  }

  @Override
  public boolean routeAndApply(
      Tensor logits, ExpertsInputs inputs, Workspace workspace, DeviceStream stream) {
    Tensor hidden = inputs.hidden();
    if (!routes
        || hidden.size(0) == 0
        || hidden.dtype() != DType.BF16
        || !hidden.isContiguous()
        || hidden.deviceAddress() % TENSOR_ALIGNMENT != 0
        || hidden.size(0) > Integer.MAX_VALUE / paddedHidden
        || !logits.isContiguous()) {
      return false;
    }
    apply(inputs, logits, workspace, false, stream);
    return true;
  }

  /**
   * @param routed whether the routing is what is in front, and what makes the module's input is to
   *     begin beside it
   */
  private void apply(
      ExpertsInputs inputs,
      @Nullable MoeLoraContext lora,
      Workspace workspace,
      boolean routed,
      DeviceStream stream) {
    if (lora != null) {
      throw new IllegalArgumentException(CutlassSupport.NO_LORA);
    }
    apply(inputs, (Tensor) null, workspace, routed, stream);
  }

  /**
   * @param logits from which the routing is still to be made; null = it has been enqueued
   */
  private void apply(
      ExpertsInputs inputs,
      @Nullable Tensor logits,
      Workspace workspace,
      boolean routed,
      DeviceStream stream) {
    if (closed) {
      throw new IllegalStateException("these experts are closed");
    }
    long tokens = inputs.hidden().size(0);
    if (tokens == 0) {
      return;
    }
    Tactics chosen = tactics.apply(Math.toIntExact(tokens));
    if (!replays.active() || kernels.isRecording(stream)) {
      enqueue(inputs, logits, workspace, chosen, routed, stream);
      return;
    }
    ExpertRouting routing = inputs.requireRouting();
    DeviceMemory scratch = (DeviceMemory) workspace.memory();
    Replays.Key key =
        new Replays.Key(
            new long[] {
              scratch.address(),
              scratch.byteSize(),
              chosen.first(),
              chosen.second(),
              routing.expertMap() == null ? 0 : 1,
              logits == null ? 0 : 1
            },
            inputs.hidden(),
            inputs.output(),
            routing.topkIds(),
            routing.topkWeights(),
            logits == null ? inputs.hidden() : logits);
    // A recording begins when all in front of it is done.
    replays.run(key, stream, on -> enqueue(inputs, logits, workspace, chosen, routed, on));
  }

  private void enqueue(
      ExpertsInputs inputs,
      @Nullable Tensor logits,
      Workspace workspace,
      Tactics chosen,
      boolean routed,
      DeviceStream stream) {
    ExpertRouting routing = inputs.requireRouting();
    Rooms rooms = new Rooms(workspace, inputs.hidden().size(0));
    Tensor output = inputs.output();
    Tensor target = isWhole() && direct(output) ? output : rooms.output(paddedHidden);
    CutlassRunner.Forward forward =
        new CutlassRunner.Forward(
            target,
            logits == null
                ? input(inputs.hidden(), rooms, routed, stream)
                : routedInput(logits, inputs, rooms, stream),
            rooms.scales(),
            routing.topkIds(),
            routing.topkWeights(),
            rooms.module());
    try (TvmCall _ = TvmCall.on(device, stream)) {
      runner.run(forward, layer, routing.expertMap() == null ? localIds : block, chosen);
    }
    if (target.equals(output)) {
      return;
    }
    Tensor narrow = target;
    if (!isWhole()) {
      // Where the call read its input from, which it has done.
      narrow =
          output.dtype() == config.inputDtype() ? output : rooms.input(config.inputDtype(), hidden);
      kernels.rows(CardKernels.Rows.resized(target, narrow), stream);
    }
    if (!narrow.equals(output)) {
      kernels.cast(narrow, output, stream);
    }
  }

  /** Whether the kernels take the layer's width as it is. */
  private boolean isWhole() {
    return hidden == paddedHidden;
  }

  private boolean direct(Tensor t) {
    return t.dtype() == config.inputDtype() && t.deviceAddress() % TENSOR_ALIGNMENT == 0;
  }

  private Tensor input(Tensor given, Rooms rooms, boolean routed, DeviceStream stream) {
    return switch (scheme.input()) {
      case FP8 -> {
        Tensor quantised = rooms.input(DType.F8_E4M3, hidden);
        kernels.quantize(
            given, quantised, Objects.requireNonNull(weights.inputScale()), routed, stream);
        yield quantised;
      }
      case MXFP8 -> {
        Tensor quantised = rooms.input(DType.F8_E4M3, hidden);
        kernels.quantizeMx(given, quantised, Objects.requireNonNull(rooms.scales()), stream);
        yield quantised;
      }
      case AS_IS ->
          isWhole() ? converted(given, rooms, stream) : padded(given, rooms, routed, stream);
    };
  }

  private Tensor routedInput(
      Tensor logits, ExpertsInputs inputs, Rooms rooms, DeviceStream stream) {
    ExpertRouting to = inputs.requireRouting();
    Tensor given = inputs.hidden();
    if (scheme.input() == CutlassScheme.Input.FP8) {
      Tensor quantised = rooms.input(DType.F8_E4M3, hidden);
      kernels.routeAndQuantize(
          config.routing(),
          logits,
          to,
          given,
          quantised,
          Objects.requireNonNull(weights.inputScale()),
          stream);
      return quantised;
    }
    Tensor wide = rooms.input(config.inputDtype(), paddedHidden);
    kernels.routeAndResize(config.routing(), logits, to, given, wide, stream);
    return wide;
  }

  private Tensor converted(Tensor given, Rooms rooms, DeviceStream stream) {
    if (direct(given)) {
      return given;
    }
    Tensor to = rooms.input(config.inputDtype(), hidden);
    kernels.cast(given, to, stream);
    return to;
  }

  private Tensor padded(Tensor given, Rooms rooms, boolean routed, DeviceStream stream) {
    Tensor narrow = given;
    boolean early = routed;
    if (given.dtype() != config.inputDtype()) {
      early = false; // behind the cast
      // Nothing is in the output's room yet.
      narrow = rooms.output(hidden);
      kernels.cast(given, narrow, stream);
    }
    Tensor to = rooms.input(config.inputDtype(), paddedHidden);
    kernels.rows(CardKernels.Rows.resized(narrow, to), early, stream);
    return to;
  }

  /**
   * The parts of a call's workspace. The module gets all that is left, and says so if that is too
   * little: asking it for the exact size is slow the first time, and calls have many sizes.
   */
  private final class Rooms {
    private final Workspace workspace;
    private final long tokens;

    Rooms(Workspace workspace, long tokens) {
      this.workspace = workspace;
      this.tokens = tokens;
      long rows = 2 * rowBytes(tokens) + scaleBytes(tokens);
      if (workspace.memory().byteSize() < rows) {
        throw new IllegalArgumentException(
            "the workspace has "
                + workspace.memory().byteSize()
                + " bytes, "
                + tokens
                + " tokens need more than "
                + rows);
      }
    }

    Tensor input(DType dtype, long width) {
      return workspace.tensor(0, dtype, tokens, width);
    }

    Tensor output(long width) {
      return workspace.tensor(rowBytes(tokens), config.inputDtype(), tokens, width);
    }

    /** E8M0 bytes {@code [T, H / 32]}, null where the module wants none. */
    @Nullable Tensor scales() {
      return scheme.input() == CutlassScheme.Input.MXFP8
          ? workspace.tensor(2 * rowBytes(tokens), DType.U8, tokens, hidden / MX_GROUP)
          : null;
    }

    @Nullable Tensor module() {
      if (!runner.takesWorkspace()) {
        return null;
      }
      long at = 2 * rowBytes(tokens) + scaleBytes(tokens);
      long address = ((DeviceMemory) workspace.memory()).address() + at;
      long from = at + (-address & (WORKSPACE_ALIGNMENT - 1));
      return workspace.tensor(from, DType.U8, workspace.memory().byteSize() - from);
    }
  }

  @Override
  public void close() {
    if (closed) {
      return;
    }
    closed = true;
    replays.close();
    TvmObject scales = layer.scales();
    if (scales != null) {
      scales.close();
    }
    runner.close();
    if (parameters != null) {
      parameters.close();
    }
    weights.close();
  }
}
