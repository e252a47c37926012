package io.moe4j.tck;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.BackendPriority;
import io.moe4j.api.spi.Experts;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.api.spi.LoraExperts;
import io.moe4j.api.spi.MonolithicExperts;
import io.moe4j.api.spi.MonolithicInputs;
import io.moe4j.api.spi.Support;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.reference.ReferenceMonolithicExperts;
import org.jspecify.annotations.Nullable;

/** A backend that routes by itself and takes LoRA; what a subclass overrides is its mistake. */
public class MonolithicReference implements ExpertsBackend {
  /** For {@link java.util.ServiceLoader}. */
  public MonolithicReference() {}

  MoeConfig config(MoeConfig config) {
    return config;
  }

  MonolithicInputs inputs(MonolithicInputs inputs) {
    return inputs;
  }

  @Nullable MoeLoraContext lora(@Nullable MoeLoraContext lora) {
    return lora;
  }

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
    return BackendPriority.REFERENCE;
  }

  @Override
  public Support isSupportedConfig(MoeConfig config, Platform platform) {
    return Support.checks()
        .require(
            !config.quantizedActivations(),
            Support.Code.QUANTIZATION,
            () -> "quantised activations of " + config.quantSchemes() + ", accepted: unquantised")
        .require(
            config.parallel().tpSize() == 1,
            Support.Code.PARALLEL,
            () -> "tensor-parallel size " + config.parallel().tpSize() + ", accepted: 1")
        .result();
  }

  private interface MonolithicLora extends MonolithicExperts, LoraExperts {}

  @Override
  public Experts prepare(MoeConfig config, ExpertWeights weights, Device device) {
    var right = new ReferenceMonolithicExperts(config(config), weights);
    return new MonolithicLora() {
      @Override
      public long workspaceBytes(int maxTokens) {
        return right.workspaceBytes(maxTokens);
      }

      @Override
      public void apply(
          MonolithicInputs in,
          @Nullable MoeLoraContext lora,
          Workspace workspace,
          DeviceStream stream) {
        right.apply(inputs(in), lora(lora), workspace, stream);
      }

      @Override
      public void close() {
        right.close();
      }
    };
  }
}
