package io.moe4j.integration;

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
import io.moe4j.api.spi.LoraExperts;
import io.moe4j.api.spi.ModularExperts;
import io.moe4j.api.spi.Support;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.backend.cpu.CpuExpertsBackend;
import java.util.concurrent.atomic.AtomicInteger;
import org.jspecify.annotations.Nullable;

/** The CPU backend, except that every third forward throws something, before or after its work. */
final class FaultyBackend implements ExpertsBackend {
  private final CpuExpertsBackend good = new CpuExpertsBackend();

  @Override
  public String name() {
    return "faulty";
  }

  @Override
  public String description() {
    return "throws errors of every kind";
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
    return -5000;
  }

  @Override
  public Support isSupportedConfig(MoeConfig config, Platform platform) {
    return good.isSupportedConfig(config, platform);
  }

  @Override
  public Experts prepare(MoeConfig config, ExpertWeights weights, Device device) {
    return new Faulty((ModularExperts) good.prepare(config, weights, device));
  }

  private record Faulty(ModularExperts good, AtomicInteger calls)
      implements ModularExperts, LoraExperts {
    Faulty(ModularExperts good) {
      this(good, new AtomicInteger());
    }

    @Override
    public long workspaceBytes(int maxTokens) {
      return good.workspaceBytes(maxTokens);
    }

    @Override
    public void apply(
        ExpertsInputs in, @Nullable MoeLoraContext lora, Workspace workspace, DeviceStream stream) {
      int call = calls.getAndIncrement();
      if (call % 6 == 0) {
        fail(call / 6);
      }
      good.apply(in, lora, workspace, stream);
      if (call % 6 == 3) {
        fail(call / 6);
      }
    }

    private static void fail(int which) {
      switch (which % 6) {
        case 0 -> throw new StackOverflowError("of this test");
        case 1 -> throw new AssertionError("of this test");
        case 2 -> throw new OutOfMemoryError("of this test");
        case 3 -> throw new IndexOutOfBoundsException("of this test");
        case 4 -> throw new NoClassDefFoundError("of this test");
        default -> throw new InternalError("of this test");
      }
    }

    @Override
    public void close() {
      good.close();
    }
  }
}
