package com.example.plain;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.BackendPriority;
import io.moe4j.api.spi.Experts;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.api.spi.Support;
import io.moe4j.api.weights.ExpertWeights;

/** SiLU experts without bias, in plain loops on the host processor. */
public final class PlainBackend implements ExpertsBackend {
  @Override
  public String name() {
    return "plain-experts";
  }

  @Override
  public DeviceType deviceType() {
    return DeviceType.CPU;
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
  public Support isSupportedConfig(MoeConfig c, Platform platform) {
    return Support.checks()
        .require(c.activation().equals(Activation.SILU), Support.Code.ACTIVATION,
            () -> "activation " + c.activation() + ", accepted: SILU without limit")
        .require(!c.expertBias(), Support.Code.BIAS,
            () -> "experts with bias, accepted: without")
        .require(!c.routerWeightOnInput(), Support.Code.ROUTER_WEIGHT_ON_INPUT,
            () -> "router weight on input, accepted: on output")
        .require(!c.isQuantized(), Support.Code.QUANTIZATION,
            () -> "quantisation " + c.quantSchemes() + ", accepted: none")
        .result();
  }

  @Override
  public Experts prepare(MoeConfig config, ExpertWeights weights, Device device) {
    return new PlainExperts(config, weights);
  }
}
