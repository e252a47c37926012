package io.moe4j.backend.flashinfer;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.platform.ComputeCapability;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.Support;
import io.moe4j.api.spi.Support.Code;
import io.moe4j.api.tensor.DType;
import java.util.Optional;

/** What {@code flashinfer-cutlass} can do, and every reason why not. */
final class CutlassSupport {
  /** Why its experts take no adapters; the oracle's own sentence says only that they do not. */
  static final String NO_LORA =
      "LoRA: FlashInfer's CUTLASS experts run from the first product to the weighted sum in one"
          + " call, so deltas of adapters have no place to enter before the activation";

  private CutlassSupport() {}

  static Support check(
      MoeConfig c, Platform platform, Installed installed, FlashInferProperties properties) {
    Support.Checks checks = Support.checks();
    String fault = properties.fault(c);
    checks.require(fault == null, Code.OTHER, () -> String.valueOf(fault));
    FlashInferOptions options = fault == null ? properties.options(c) : FlashInferOptions.DEFAULT;
    Optional<DeviceInfo> device = platform.device(DeviceType.CUDA);
    checks.require(device.isPresent(), Code.DEVICE, () -> platform.whyAbsent(DeviceType.CUDA));
    Optional<ComputeCapability> capability = device.flatMap(DeviceInfo::capability);
    Optional<String> module = capability.flatMap(FlashInferLibrary::cutlassModule);
    capability.ifPresent(k ->
        checks.require(
            module.isPresent(),
            Code.CAPABILITY,
            () -> "FlashInfer has no fused_moe module for capability " + k));
    checks.require(c.lora().isEmpty(), Code.LORA, () -> NO_LORA);
    Optional<CutlassScheme> scheme = CutlassScheme.of(c);
    checks.require(
        scheme.isPresent(),
        Code.QUANTIZATION,
        () ->
            "quantisation "
                + c.quantSchemes()
                + (c.quantizedActivations() ? " with" : " without")
                + " quantised activations is none of: "
                + CutlassScheme.titles());
    DType in = c.inputDtype();
    checks.require(
        in == DType.BF16 || in == DType.F16,
        Code.DTYPE,
        () -> "input dtype " + in + " is none of BF16, F16");
    checks.require(
        c.weightDtype() == in,
        Code.DTYPE,
        () -> "weight dtype " + c.weightDtype() + " is not the input's " + in);
    scheme.ifPresent(s -> s.check(c, capability, checks));
    Optional<MoeActivation> activation = MoeActivation.of(c.activation());
    checks.require(
        activation.isPresent(),
        Code.ACTIVATION,
        () -> "FlashInfer has no activation that computes " + c.activation());
    checks.require(
        !c.routerWeightOnInput(),
        Code.ROUTER_WEIGHT_ON_INPUT,
        () -> "the router weight on input is set, must not be: the module weights outputs");
    checks.require(
        ExpertBlock.of(c).isPresent(),
        Code.EXPERT_MAP,
        () -> "the expert map is not one of equal blocks in order: " + c.expertMap().orElseThrow());
    checks.require(
        !c.batchInvariant(),
        Code.BATCH_INVARIANCE,
        () -> "batchInvariant is true, must be false: tiles follow the batch size");
    if (module.isPresent() && capability.isPresent()) {
      Installed.Answer answer = installed.module(options, module.get(), capability.get());
      checks.require(answer.module().isPresent(), Code.DRIVER, answer::reason);
      answer.module().ifPresent(m -> version(m, scheme, activation, checks));
    }
    return checks.result();
  }

  private static void version(
      FlashInferModule module,
      Optional<CutlassScheme> scheme,
      Optional<MoeActivation> activation,
      Support.Checks checks) {
    FlashInferVersion v = module.library().version();
    scheme.ifPresent(s ->
        checks.require(
            v.patch() >= s.firstPatch(),
            Code.QUANTIZATION,
            () -> "FlashInfer " + v + " has no such weights, 0.6." + s.firstPatch() + " has"));
    scheme
        .flatMap(module::whyNotCompiled)
        .ifPresent(why -> checks.require(false, Code.DRIVER, () -> why));
    activation.ifPresent(a ->
        checks.require(
            v.patch() >= a.firstPatch(),
            Code.ACTIVATION,
            () -> "FlashInfer " + v + " has no such activation, 0.6." + a.firstPatch() + " has"));
  }
}
