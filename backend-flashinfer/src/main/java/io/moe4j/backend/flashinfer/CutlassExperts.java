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
import java.util.concurrent.ConcurrentHashMap;
import java.util.function.Function;
import java.util.function.IntFunction;
import org.jspecify.annotations.Nullable;

/**
 * Prepared experts of {@code flashinfer-cutlass}. A forward is one call into FlashInfer; before it
 * hidden states are converted where they are of another dtype (or quantised, for FP8), behind it
 * the output where that is. Nothing is allocated on the device by versions that take a workspace
 * (0.6.16 and later), nothing is read by the host or waited for, so that a forward can be captured
 * once it has run.
 */
final class CutlassExperts implements ModularExperts {
  /** What the module wants of the workspace's address. */
  private static final int WORKSPACE_ALIGNMENT = 128;

  /** What its copies by tensor maps want of a tensor's address. */
  private static final int TENSOR_ALIGNMENT = 16;

  private final MoeConfig config;
  private final Device device;
  private final CardKernels kernels;
  private final CutlassScheme scheme;
  private final CutlassRunner runner;
  private final CutlassWeights weights;
  private final CutlassRunner.Layer layer;
  private final ExpertBlock block;
  private final ExpertBlock localIds;
  private final IntFunction<Tactics> tactics;
  private final Map<Integer, Long> moduleBytes = new ConcurrentHashMap<>();
  private final @Nullable DeviceTensors parameters;
  private volatile boolean closed;

  /**
   * @param config the layer, supported
   * @param experts fits {@code config}
   * @param device open
   * @param kernels around the module's
   * @param module for the device
   * @param tactics what is chosen by number of tokens, of a runner's
   */
  CutlassExperts(
      MoeConfig config,
      ExpertWeights experts,
      Device device,
      CardKernels kernels,
      FlashInferModule module,
      Function<CutlassRunner, IntFunction<Tactics>> tactics) {
    this.config = config;
    this.device = device;
    this.kernels = kernels;
    this.scheme = CutlassScheme.of(config).orElseThrow();
    this.block = ExpertBlock.of(config).orElseThrow();
    this.localIds = new ExpertBlock(block.local(), 1, 0);
    this.weights =
        new CutlassWeights(
            config, experts, scheme, device, (from, to) -> interleave(module, from, to));
    DeviceTensors constants = new DeviceTensors(device);
    CutlassRunner made = null;
    try {
      made = new CutlassRunner(module, device, scheme, config.inputDtype());
      this.runner = made;
      this.tactics = tactics.apply(made);
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

  private long moduleBytes(int tokens) {
    return moduleBytes.computeIfAbsent(
        tokens,
        t ->
            runner.workspaceBytes(
                t,
                config.expertHiddenSize(),
                config.intermediateSize(),
                config.topK(),
                block,
                layer.kind()));
  }

  /** Room for hidden states or the output in the module's dtype, one after the other. */
  private long rowBytes(long tokens) {
    return Workspace.align(
        Math.multiplyExact(tokens, config.inputDtype().byteSize(config.expertHiddenSize())));
  }

  @Override
  public long workspaceBytes(int maxTokens) {
    if (maxTokens == 0) {
      return 0;
    }
    return WORKSPACE_ALIGNMENT + Workspace.align(moduleBytes(maxTokens)) + 2 * rowBytes(maxTokens);
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
    if (lora != null) {
      throw new IllegalArgumentException(CutlassSupport.NO_LORA);
    }
    Tensor hidden = inputs.hidden();
    long tokens = hidden.size(0);
    if (tokens == 0) {
      return;
    }
    ExpertRouting routing = inputs.requireRouting();
    Rooms rooms = new Rooms(workspace, tokens);
    Tensor output = inputs.output();
    Tensor target = direct(output) ? output : rooms.output(config.inputDtype());
    CutlassRunner.Forward forward =
        new CutlassRunner.Forward(
            target,
            input(hidden, rooms, stream),
            routing.topkIds(),
            routing.topkWeights(),
            rooms.module());
    try (TvmCall _ = TvmCall.on(device, stream)) {
      runner.run(
          forward,
          layer,
          routing.expertMap() == null ? localIds : block,
          tactics.apply(Math.toIntExact(tokens)));
    }
    if (!target.equals(output)) {
      kernels.cast(target, output, stream);
    }
  }

  private boolean direct(Tensor t) {
    return t.dtype() == config.inputDtype() && t.deviceAddress() % TENSOR_ALIGNMENT == 0;
  }

  private Tensor input(Tensor hidden, Rooms rooms, DeviceStream stream) {
    Tensor scale = weights.inputScale();
    if (scale != null) {
      Tensor quantised = rooms.input(DType.F8_E4M3);
      kernels.quantize(hidden, quantised, scale, stream);
      return quantised;
    }
    if (direct(hidden)) {
      return hidden;
    }
    Tensor to = rooms.input(config.inputDtype());
    kernels.cast(hidden, to, stream);
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
      long rows = 2 * rowBytes(tokens);
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

    Tensor input(DType dtype) {
      return workspace.tensor(0, dtype, tokens, config.expertHiddenSize());
    }

    Tensor output(DType dtype) {
      return workspace.tensor(rowBytes(tokens), dtype, tokens, config.expertHiddenSize());
    }

    @Nullable Tensor module() {
      if (!runner.takesWorkspace()) {
        return null;
      }
      long at = 2 * rowBytes(tokens);
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
