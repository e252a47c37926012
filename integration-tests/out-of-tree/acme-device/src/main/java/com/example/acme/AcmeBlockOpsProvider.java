package com.example.acme;

import static com.example.acme.AcmeDevice.onCard;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.spi.BlockOpsProvider;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.reference.ReferenceBlockOps;

/** Router, shared expert, latent projections, dispatch and combine on the card. */
public final class AcmeBlockOpsProvider implements BlockOpsProvider {
  @Override
  public DeviceType deviceType() {
    return AcmeDevice.TYPE;
  }

  @Override
  public BlockOps prepare(MoeConfig config, MoeLayerWeights weights, Device device) {
    return new OnCard(new ReferenceBlockOps(config, weights));
  }

  private record OnCard(BlockOps kernels) implements BlockOps {
    @Override
    public long workspaceBytes(int maxTokens) {
      return 0;
    }

    @Override
    public void routerLogits(Tensor hidden, Tensor logits, Workspace w, DeviceStream s) {
      kernels.routerLogits(onCard(hidden), onCard(logits), w, s);
    }

    @Override
    public void route(Tensor logits, Tensor ids, Tensor weights, Workspace w, DeviceStream s) {
      kernels.route(onCard(logits), onCard(ids), onCard(weights), w, s);
    }

    @Override
    public void latentIn(
        Tensor hidden, MoeLoraContext lora, Tensor latent, Workspace w, DeviceStream s) {
      kernels.latentIn(onCard(hidden), AcmeLoraContext.onCard(lora), onCard(latent), w, s);
    }

    @Override
    public void output(
        Tensor hidden,
        Tensor routed,
        MoeLoraContext lora,
        Tensor output,
        Workspace w,
        DeviceStream s) {
      kernels.output(
          onCard(hidden), onCard(routed), AcmeLoraContext.onCard(lora), onCard(output), w, s);
    }

    @Override
    public void dispatch(
        Tensor hidden,
        ExpertRouting routing,
        Tensor tokenLoraMapping,
        Tensor batched,
        Tensor expertNumTokens,
        Tensor batchedLoraMapping,
        Workspace w,
        DeviceStream s) {
      kernels.dispatch(
          onCard(hidden),
          AcmeBackend.routing(routing),
          tokenLoraMapping == null ? null : onCard(tokenLoraMapping),
          onCard(batched),
          onCard(expertNumTokens),
          batchedLoraMapping == null ? null : onCard(batchedLoraMapping),
          w,
          s);
    }

    @Override
    public void combine(
        Tensor batched, ExpertRouting routing, Tensor routed, Workspace w, DeviceStream s) {
      kernels.combine(onCard(batched), AcmeBackend.routing(routing), onCard(routed), w, s);
    }

    @Override
    public void close() {
      kernels.close();
    }
  }
}
