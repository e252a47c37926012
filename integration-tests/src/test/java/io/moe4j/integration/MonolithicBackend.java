package io.moe4j.integration;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.Experts;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.api.spi.Support;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.reference.ReferenceMonolithicExperts;

/**
 * Experts that route by themselves and take LoRA. Shared experts, latent projections and the
 * router's logits are the layer's, as with modular ones.
 */
record MonolithicBackend() implements ExpertsBackend {
  @Override
  public String name() {
    return "monolithic-reference";
  }

  @Override
  public String description() {
    return "float64 routing and experts in one";
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

  @Override
  public int priority(MoeConfig config, Platform platform) {
    return 1;
  }

  @Override
  public Support isSupportedConfig(MoeConfig config, Platform platform) {
    return Support.yes();
  }

  @Override
  public Experts prepare(MoeConfig config, ExpertWeights weights, Device device) {
    return new ReferenceMonolithicExperts(config, weights);
  }
}
