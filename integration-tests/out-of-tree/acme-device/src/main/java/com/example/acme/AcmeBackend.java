package com.example.acme;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.BackendPriority;
import io.moe4j.api.spi.Experts;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.spi.LoraExperts;
import io.moe4j.api.spi.ModularExperts;
import io.moe4j.api.spi.Support;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.reference.ReferenceExperts;

/** Experts on the card; the reference stands for its kernels. */
public final class AcmeBackend implements ExpertsBackend {
  @Override
  public String name() {
    return "acme";
  }

  @Override
  public DeviceType deviceType() {
    return AcmeDevice.TYPE;
  }

  @Override
  public boolean supportsLora() {
    return true;
  }

  @Override
  public int priority(MoeConfig config, Platform platform) {
    return BackendPriority.GPU_TUNED;
  }

  @Override
  public Support isSupportedConfig(MoeConfig config, Platform platform) {
    return Support.checks()
        .require(platform.device(AcmeDevice.TYPE).isPresent(), Support.Code.DEVICE,
            () -> platform.whyAbsent(AcmeDevice.TYPE))
        .require(!config.isQuantized(), Support.Code.QUANTIZATION,
            () -> "quantisation " + config.quantSchemes() + ", accepted: none")
        .require(config.parallel().tpSize() == 1, Support.Code.PARALLEL,
            () -> "tensor-parallel size " + config.parallel().tpSize() + ", accepted: 1")
        .result();
  }

  @Override
  public Experts prepare(MoeConfig config, ExpertWeights weights, Device device) {
    return new OnCard(new ReferenceExperts(config, weights));
  }

  private record OnCard(ReferenceExperts kernels) implements ModularExperts, LoraExperts {
    @Override
    public long workspaceBytes(int maxTokens) {
      return 0;
    }

    @Override
    public void apply(
        ExpertsInputs in, MoeLoraContext lora, Workspace workspace, DeviceStream stream) {
      kernels.apply(
          ExpertsInputs.standard(
              AcmeDevice.onCard(in.hidden()),
              routing(in.requireRouting()),
              AcmeDevice.onCard(in.output())),
          AcmeLoraContext.onCard(lora),
          workspace,
          stream);
    }

    /** Deltas are added on the card: there is nothing to bring up to date before a replay. */
    @Override
    public void refresh(MoeLoraContext context, DeviceStream stream) {}

    @Override
    public void close() {
      kernels.close();
    }
  }

  static ExpertRouting routing(ExpertRouting r) {
    Tensor map = r.expertMap();
    return new ExpertRouting(
        AcmeDevice.onCard(r.topkIds()),
        AcmeDevice.onCard(r.topkWeights()),
        map == null ? null : AcmeDevice.onCard(map));
  }
}
