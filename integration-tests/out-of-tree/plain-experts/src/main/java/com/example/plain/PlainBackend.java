package com.example.plain;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.BackendPriority;
import io.moe4j.api.device.Device;
import io.moe4j.api.spi.Experts;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.api.spi.Support;
import io.moe4j.api.weights.ExpertWeights;

/** SiLU experts without bias, in plain loops on the host processor. */
public final class PlainBackend implements ExpertsBackend {
  /** Called by the service loader: cheap, and works everywhere. */
  public PlainBackend() {}

  @Override
  public String name() {
    return "plain-experts";
  }

  @Override
  public String description() {
    return "example of a backend outside moe4j's tree";
  }

  @Override
  public DeviceType deviceType() {
    return DeviceType.CPU;
  }

  @Override
  public ActivationFormat activationFormat() {
    return ActivationFormat.STANDARD;
  }

  @Override
  public boolean supportsLora() {
    return true;
  }

  /** Between the built-in CPU experts and any GPU. */
  @Override
  public int priority(MoeConfig config, Platform platform) {
    return BackendPriority.CPU + 50;
  }

  @Override
  public Support isSupportedConfig(MoeConfig config, Platform platform) {
    return Support.checks()
        .require(
            config.activation().equals(Activation.SILU),
            Support.Code.ACTIVATION,
            () -> "activation " + config.activation() + ", accepted: SILU without limit")
        .require(
            !config.expertBias(),
            Support.Code.BIAS,
            () -> "the experts have biases, accepted: experts without bias")
        .require(
            !config.routerWeightOnInput(),
            Support.Code.ROUTER_WEIGHT_ON_INPUT,
            () -> "router weight on input, accepted: on output")
        .require(
            !config.isQuantized(),
            Support.Code.QUANTIZATION,
            () -> "quantisation " + config.quantSchemes() + ", accepted: none")
        .require(
            config.parallel().tpSize() == 1,
            Support.Code.PARALLEL,
            () -> "tensor-parallel size " + config.parallel().tpSize() + ", accepted: 1")
        .result();
  }

  @Override
  public Experts prepare(MoeConfig config, ExpertWeights weights, Device device) {
    return new PlainExperts(config, weights);
  }
}
