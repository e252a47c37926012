package io.moe4j.comm.nccl;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.spi.ExchangeInputs;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.reference.ReferenceBlockOps;
import java.lang.foreign.MemorySegment;
import org.jspecify.annotations.Nullable;

/** What kernels do on a card, on a {@link HostCard}. */
final class HostKernels implements ExchangeKernels {
  @Override
  public void pad(ExchangeInputs inputs, Rows rows, DeviceStream stream) {
    part(inputs.hidden(), rows.hidden(), 0);
    part(inputs.routing().topkIds(), rows.ids(), 0xff);
    part(inputs.routing().topkWeights(), rows.weights(), 0);
    Tensor slots = rows.slots();
    Tensor mapping = inputs.tokenLoraMapping();
    if (slots != null && mapping != null) {
      part(mapping, slots, 0xff);
    }
  }

  private static void part(Tensor from, Tensor to, int fill) {
    HostCard.bytes(to).fill((byte) fill);
    HostCard.bytes(to).copyFrom(HostCard.bytes(from));
  }

  @Override
  public void own(Tensor ids, Tensor owner, long rows, int me, DeviceStream stream) {
    Tensor on = HostCard.onHost(ids);
    Tensor by = HostCard.onHost(owner);
    long perRank = rows * on.size(1);
    for (long p = 0; p < on.elementCount(); p++) {
      long row = p / on.size(1);
      long k = p % on.size(1);
      int e = (int) on.get(row, k);
      if (e >= 0 && e < by.size(1) && by.get(p / perRank, e) != me) {
        on.set(-1, row, k);
      }
    }
  }

  @Override
  public void cast(Tensor in, Tensor out, DeviceStream stream) {
    Tensor from = HostCard.onHost(in);
    Tensor to = HostCard.onHost(out);
    for (long r = 0; r < from.size(0); r++) {
      for (long c = 0; c < from.size(1); c++) {
        to.set(from.get(r, c), r, c);
      }
    }
  }

  /** Dispatch and combine of the reference; exchanges use nothing else. */
  static BlockOps block(MoeConfig config, MoeLayerWeights weights) {
    ReferenceBlockOps reference = new ReferenceBlockOps(config, weights);
    return new BlockOps() {
      @Override
      public long workspaceBytes(int maxTokens) {
        return reference.workspaceBytes(maxTokens);
      }

      private Workspace none() {
        return new Workspace(new HostMemory(MemorySegment.ofArray(new byte[0])));
      }

      private @Nullable Tensor on(@Nullable Tensor t) {
        return t == null ? null : HostCard.onHost(t);
      }

      private ExpertRouting on(ExpertRouting r) {
        return new ExpertRouting(
            HostCard.onHost(r.topkIds()), HostCard.onHost(r.topkWeights()), on(r.expertMap()));
      }

      @Override
      public void dispatch(
          Tensor hidden,
          ExpertRouting routing,
          @Nullable Tensor tokenLoraMapping,
          Tensor batched,
          Tensor expertNumTokens,
          @Nullable Tensor batchedLoraMapping,
          Workspace workspace,
          DeviceStream stream) {
        reference.dispatch(
            HostCard.onHost(hidden),
            on(routing),
            on(tokenLoraMapping),
            HostCard.onHost(batched),
            HostCard.onHost(expertNumTokens),
            on(batchedLoraMapping),
            none(),
            DeviceStream.HOST);
      }

      @Override
      public void combine(
          Tensor batched,
          ExpertRouting routing,
          Tensor routed,
          Workspace workspace,
          DeviceStream stream) {
        reference.combine(
            HostCard.onHost(batched),
            on(routing),
            HostCard.onHost(routed),
            none(),
            DeviceStream.HOST);
      }

      @Override
      public void routerLogits(Tensor hidden, Tensor logits, Workspace w, DeviceStream stream) {
        throw new UnsupportedOperationException();
      }

      @Override
      public void route(Tensor logits, Tensor ids, Tensor weights, Workspace w, DeviceStream s) {
        throw new UnsupportedOperationException();
      }

      @Override
      public void latentIn(
          Tensor hidden,
          @Nullable MoeLoraContext lora,
          Tensor latent,
          Workspace workspace,
          DeviceStream stream) {
        throw new UnsupportedOperationException();
      }

      @Override
      public void output(
          Tensor hidden,
          Tensor routed,
          @Nullable MoeLoraContext lora,
          Tensor output,
          Workspace workspace,
          DeviceStream stream) {
        throw new UnsupportedOperationException();
      }

      @Override
      public void close() {
        reference.close();
      }
    };
  }
}
