package io.moe4j.oracle;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.Experts;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.api.spi.Support;
import io.moe4j.api.weights.ExpertWeights;
import java.util.function.BiFunction;
import java.util.function.ToIntBiFunction;

/** A backend made of answers. */
final class FakeBackend implements ExpertsBackend {
  private final String name;
  private final DeviceType device;
  private ActivationFormat format = ActivationFormat.STANDARD;
  private boolean lora;
  private ToIntBiFunction<MoeConfig, Platform> priority = (c, p) -> 100;
  private BiFunction<MoeConfig, Platform, Support> support = (c, p) -> Support.yes();
  private PrepareCall prepare =
      (c, w, d) -> {
        throw new AssertionError("not to be prepared");
      };

  interface PrepareCall {
    Experts prepare(MoeConfig config, ExpertWeights weights, Device device);
  }

  FakeBackend(String name, DeviceType device) {
    this.name = name;
    this.device = device;
  }

  FakeBackend batched() {
    format = ActivationFormat.BATCHED;
    return this;
  }

  FakeBackend withLora() {
    lora = true;
    return this;
  }

  FakeBackend priority(int value) {
    priority = (c, p) -> value;
    return this;
  }

  FakeBackend priority(ToIntBiFunction<MoeConfig, Platform> answer) {
    priority = answer;
    return this;
  }

  FakeBackend support(BiFunction<MoeConfig, Platform, Support> answer) {
    support = answer;
    return this;
  }

  FakeBackend prepares(PrepareCall answer) {
    prepare = answer;
    return this;
  }

  @Override
  public String name() {
    return name;
  }

  @Override
  public String description() {
    return "fake " + name;
  }

  @Override
  public DeviceType deviceType() {
    return device;
  }

  @Override
  public ActivationFormat activationFormat() {
    return format;
  }

  @Override
  public boolean supportsLora() {
    return lora;
  }

  @Override
  public int priority(MoeConfig config, Platform platform) {
    return priority.applyAsInt(config, platform);
  }

  @Override
  public Support isSupportedConfig(MoeConfig config, Platform platform) {
    return support.apply(config, platform);
  }

  @Override
  public Experts prepare(MoeConfig config, ExpertWeights weights, Device device) {
    return prepare.prepare(config, weights, device);
  }
}
