package io.moe4j.backend.flashinfer;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.platform.ComputeCapability;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.MonolithicExperts;
import io.moe4j.api.spi.Support;
import io.moe4j.api.spi.Support.Code;
import io.moe4j.api.tensor.DType;
import java.util.Optional;

/** What {@code flashinfer-trtllm} can do, and every reason why not. */
final class TrtllmSupport {
  /** What FlashInfer's sort of the pairs is compiled for. */
  private static final int MOST_EXPERTS = 512;

  private static final int MOST_CHOSEN = 32;

  private TrtllmSupport() {}

  static Support check(
      MoeConfig c, Platform platform, Installed installed, FlashInferProperties properties) {
    Support.Checks checks = Support.checks();
    String fault = properties.fault(c);
    checks.require(fault == null, Code.OTHER, () -> String.valueOf(fault));
    FlashInferOptions options = fault == null ? properties.options(c) : FlashInferOptions.DEFAULT;
    Optional<DeviceInfo> device = platform.device(DeviceType.CUDA);
    checks.require(device.isPresent(), Code.DEVICE, () -> platform.whyAbsent(DeviceType.CUDA));
    Optional<ComputeCapability> capability = device.flatMap(DeviceInfo::capability);
    Optional<String> module = capability.flatMap(FlashInferLibrary::trtllmModule);
    capability.ifPresent(k ->
        checks.require(
            module.isPresent(),
            Code.CAPABILITY,
            () -> "FlashInfer has TRTLLM experts for capability 10.x, this is " + k));
    weights(c, checks);
    routing(c, checks);
    if (module.isPresent() && capability.isPresent()) {
      Installed.Answer answer = installed.module(options, module.get(), capability.get());
      checks.require(answer.module().isPresent(), Code.DRIVER, answer::reason);
      answer
          .module()
          .ifPresent(m -> module(m, TrtllmScheme.of(c).orElse(TrtllmScheme.PLAIN), checks));
    }
    return checks.result();
  }

  private static void weights(MoeConfig c, Support.Checks checks) {
    Optional<TrtllmScheme> scheme = TrtllmScheme.of(c);
    checks.require(
        scheme.isPresent(),
        Code.QUANTIZATION,
        () ->
            "quantisation "
                + c.quantSchemes()
                + (c.quantizedActivations() ? " with" : " without")
                + " quantised activations is none of: "
                + TrtllmScheme.titles());
    DType in = c.inputDtype();
    checks.require(in == DType.BF16, Code.DTYPE, () -> "input dtype " + in + ", must be BF16");
    checks.require(
        c.weightDtype() == DType.BF16,
        Code.DTYPE,
        () -> "weight dtype " + c.weightDtype() + ", must be BF16");
    checks.require(
        MoeActivation.of(c.activation()).map(MoeActivation::isSwiglu).orElse(false),
        Code.ACTIVATION,
        () ->
            c.activation()
                + ", the TRTLLM experts compute SiLU with a gate, clamped or as in gpt-oss too");
    // Of a scheme that it has not, it says what it would say of plain weights.
    TrtllmScheme s = scheme.orElse(TrtllmScheme.PLAIN);
    checks.require(
        s.takesParameters()
            || MoeActivation.of(c.activation()).map(a -> !a.parameters()).orElse(true),
        Code.ACTIVATION,
        () ->
            c.activation()
                + ", with a scale for each expert the TRTLLM experts compute SiLU with a gate and no"
                + " limit: they would apply the parameters to numbers before their scales");
    checks.require(
        !c.expertBias() || s.takesBiases(),
        Code.BIAS,
        () ->
            "experts with biases, "
                + s.function()
                + (s == TrtllmScheme.NVFP4 ? " adds them before its scales" : " takes none"));
    checks.require(
        c.lora().isEmpty() || s.takesLora(),
        Code.LORA,
        () ->
            "LoRA with quantised activations: what the second product reads does not come back"
                + " as numbers that its deltas could be made from");
    checks.require(
        c.lora().isEmpty() || !c.expertBias(),
        Code.LORA,
        () -> "LoRA with biases: FlashInfer adds either a bias or a delta to the first product");
    checks.require(
        ExpertBlock.of(c).isPresent(),
        Code.EXPERT_MAP,
        () -> "the expert map is not one of equal blocks in order: " + c.expertMap().orElseThrow());
    checks.require(
        !c.batchInvariant(),
        Code.BATCH_INVARIANCE,
        () -> "batchInvariant is true, must be false: tiles follow the batch size");
  }

  private static void routing(MoeConfig c, Support.Checks checks) {
    if (MonolithicExperts.isSupportedRouting(c) instanceof Support.No no) {
      no.reasons().forEach(r -> checks.require(false, r.code(), r::message));
    }
    checks.require(
        !c.routerWeightOnInput(),
        Code.ROUTER_WEIGHT_ON_INPUT,
        () -> "the router weight on input is set, must not be: the module weights outputs");
    checks.require(
        c.routing().sumFloor() == 0,
        Code.ROUTING,
        () -> "a floor of the weights' sum (" + c.routing().sumFloor() + ") is not computed");
    checks.require(
        c.numExperts() <= MOST_EXPERTS && c.topK() <= MOST_CHOSEN,
        Code.SIZE,
        () ->
            c.topK()
                + " of "
                + c.numExperts()
                + " experts a token, FlashInfer sorts up to "
                + MOST_CHOSEN
                + " of "
                + MOST_EXPERTS);
  }

  private static void module(FlashInferModule m, TrtllmScheme scheme, Support.Checks checks) {
    FlashInferVersion v = m.library().version();
    checks.require(
        !m.cubins().isEmpty(),
        Code.DRIVER,
        () ->
            "no folder with the compiled kernels of FlashInfer's TRTLLM experts was found: pip"
                + " install flashinfer-cubin, or name it with "
                + SearchPlaces.CUBIN_VARIABLE);
    checks.require(
        !ArgumentLists.of(scheme.function(), v).isEmpty(),
        Code.DRIVER,
        () ->
            "FlashInfer "
                + v
                + " has no "
                + scheme.function()
                + " that takes ids and weights apart, 0.6."
                + ArgumentLists.TRTLLM_FIRST_PATCH
                + " has");
  }
}
