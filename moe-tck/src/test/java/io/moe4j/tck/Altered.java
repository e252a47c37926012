package io.moe4j.tck;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.Experts;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.spi.Fact;
import io.moe4j.api.spi.LoraExperts;
import io.moe4j.api.spi.ModularExperts;
import io.moe4j.api.spi.Support;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.backend.cpu.reference.CpuReferenceBackend;
import java.util.List;
import java.util.Locale;
import org.jspecify.annotations.Nullable;

/** The reference with one thing changed: what a subclass overrides is its mistake. */
abstract class Altered implements ExpertsBackend {
  private final ExpertsBackend right;

  Altered() {
    this(new CpuReferenceBackend());
  }

  Altered(ExpertsBackend right) {
    this.right = right;
  }

  MoeConfig config(MoeConfig config) {
    return config;
  }

  ExpertWeights weights(ExpertWeights weights) {
    return weights;
  }

  ExpertsInputs inputs(MoeConfig config, ExpertsInputs inputs) {
    return inputs;
  }

  @Nullable MoeLoraContext lora(@Nullable MoeLoraContext lora) {
    return lora;
  }

  long workspaceBytes(int maxTokens) {
    return 0;
  }

  /** Runs when the right result is in place. */
  void after(MoeConfig config, ExpertsInputs inputs, Workspace workspace) {}

  void close(int times) {}

  List<Fact> facts() {
    return List.of();
  }

  @Override
  public String name() {
    return getClass()
        .getSimpleName()
        .replaceAll("(?<=[a-z])(?=[A-Z])", "-")
        .toLowerCase(Locale.ROOT);
  }

  @Override
  public String description() {
    return "deliberately wrong";
  }

  @Override
  public DeviceType deviceType() {
    return right.deviceType();
  }

  @Override
  public ActivationFormat activationFormat() {
    return right.activationFormat();
  }

  @Override
  public boolean supportsLora() {
    return true;
  }

  @Override
  public int priority(MoeConfig config, Platform platform) {
    return right.priority(config, platform);
  }

  @Override
  public Support isSupportedConfig(MoeConfig config, Platform platform) {
    return right.isSupportedConfig(config, platform);
  }

  /** Both, so that an anonymous class can be it. */
  interface ModularLora extends ModularExperts, LoraExperts {}

  @Override
  public Experts prepare(MoeConfig config, ExpertWeights weights, Device device) {
    var experts = (ModularExperts) right.prepare(config(config), weights(weights), device);
    return new ModularLora() {
      private int closed;

      @Override
      public long workspaceBytes(int maxTokens) {
        return Altered.this.workspaceBytes(maxTokens);
      }

      @Override
      public void apply(
          ExpertsInputs inputs,
          @Nullable MoeLoraContext lora,
          Workspace workspace,
          DeviceStream stream) {
        experts.apply(inputs(config, inputs), lora(lora), workspace, stream);
        after(config, inputs, workspace);
      }

      @Override
      public List<Fact> facts() {
        return Altered.this.facts();
      }

      @Override
      public void close() {
        Altered.this.close(++closed);
      }
    };
  }
}
