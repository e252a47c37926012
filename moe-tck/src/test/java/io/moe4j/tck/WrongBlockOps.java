package io.moe4j.tck;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.spi.BlockOpsProvider;
import io.moe4j.api.spi.Fact;
import io.moe4j.api.spi.Support;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.RouterWeights;
import io.moe4j.api.weights.SharedExpertWeights;
import io.moe4j.reference.ReferenceBlockOps;
import java.lang.foreign.ValueLayout;
import java.util.List;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.locks.LockSupport;
import java.util.function.Supplier;
import org.jspecify.annotations.Nullable;

/** The reference's operations with one thing changed. */
class WrongBlockOps implements BlockOps {
  private static final AtomicLong ASKED = new AtomicLong();

  private final BlockOps right;

  WrongBlockOps(MoeConfig config, MoeLayerWeights weights) {
    this.right = new ReferenceBlockOps(config, weights);
  }

  /** Makes operations. */
  interface Maker {
    /**
     * {@return the operations}
     *
     * @param config the layer
     * @param weights its weights
     */
    BlockOps make(MoeConfig config, MoeLayerWeights weights);
  }

  /** {@return a maker of the right operations that say something of themselves} */
  static Maker saying(Supplier<List<Fact>> facts) {
    return (c, w) ->
        new WrongBlockOps(c, w) {
          @Override
          public List<Fact> facts() {
            return facts.get();
          }
        };
  }

  /** One more byte each time. */
  static List<Fact> changingFacts() {
    return List.of(new Fact("shared", "packed", ASKED.incrementAndGet()));
  }

  /** {@return a provider of such operations for the host processor} */
  static BlockOpsProvider provider(Maker maker) {
    return new BlockOpsProvider() {
      @Override
      public DeviceType deviceType() {
        return DeviceType.CPU;
      }

      @Override
      public Support isSupportedConfig(MoeConfig config) {
        return Support.yes();
      }

      @Override
      public BlockOps prepare(MoeConfig config, MoeLayerWeights weights, Device device) {
        return maker.make(config, weights);
      }
    };
  }

  static MoeConfig routing(
      MoeConfig config, boolean renormalize, float scaling, int groups, int kept) {
    RoutingConfig r = config.routing();
    return config.toBuilder()
        .routing(
            r.toBuilder()
                .renormalize(renormalize)
                .scalingFactor(scaling)
                .groups(groups, kept, r.groupScore())
                .build())
        .build();
  }

  /** Weights as scored. */
  static BlockOps renormalizeForgotten(MoeConfig c, MoeLayerWeights w) {
    RoutingConfig r = c.routing();
    return new WrongBlockOps(
        routing(c, false, r.scalingFactor(), r.numGroups(), r.topkGroups()), w);
  }

  /** Factor 1. */
  static BlockOps scalingForgotten(MoeConfig c, MoeLayerWeights w) {
    RoutingConfig r = c.routing();
    return new WrongBlockOps(routing(c, r.renormalize(), 1, r.numGroups(), r.topkGroups()), w);
  }

  /** All groups stay. */
  static BlockOps groupsIgnored(MoeConfig c, MoeLayerWeights w) {
    RoutingConfig r = c.routing();
    return new WrongBlockOps(routing(c, r.renormalize(), r.scalingFactor(), 1, 1), w);
  }

  /** No shared expert. */
  static BlockOps sharedForgotten(MoeConfig c, MoeLayerWeights w) {
    return new WrongBlockOps(c, new MoeLayerWeights(w.experts(), w.router(), null, w.latent()));
  }

  /** The shared expert's output is not multiplied. */
  static BlockOps sharedGateForgotten(MoeConfig c, MoeLayerWeights w) {
    SharedExpertWeights shared =
        w.shared() == null ? null : new SharedExpertWeights(w.shared().mlp(), null);
    return new WrongBlockOps(c, new MoeLayerWeights(w.experts(), w.router(), shared, w.latent()));
  }

  /** The largest id wins a tie. */
  static BlockOps tiesReversed(MoeConfig c, MoeLayerWeights w) {
    return new WrongBlockOps(c, w) {
      @Override
      public void route(
          Tensor logits, Tensor ids, Tensor weights, Workspace workspace, DeviceStream stream) {
        super.route(logits, ids, weights, workspace, stream);
        for (int t = 0; t < ids.size(0); t++) {
          for (int k = 1; k < ids.size(1); k++) {
            double before = ids.get(t, k - 1);
            double here = ids.get(t, k);
            if (weights.get(t, k) == weights.get(t, k - 1) && before < here) {
              ids.set(here, t, k - 1);
              ids.set(before, t, k);
            }
          }
        }
      }
    };
  }

  /** Adapters on shared experts and latent projections are ignored. */
  static BlockOps loraIgnored(MoeConfig c, MoeLayerWeights w) {
    return new WrongBlockOps(c, w) {
      @Override
      public void output(
          Tensor hidden,
          Tensor routed,
          @Nullable MoeLoraContext lora,
          Tensor output,
          Workspace workspace,
          DeviceStream stream) {
        super.output(hidden, routed, null, output, workspace, stream);
      }

      @Override
      public void latentIn(
          Tensor hidden,
          @Nullable MoeLoraContext lora,
          Tensor latent,
          Workspace workspace,
          DeviceStream stream) {
        super.latentIn(hidden, null, latent, workspace, stream);
      }
    };
  }

  /** Clears the output before it reads the experts' sum. */
  static BlockOps outputCleared(MoeConfig c, MoeLayerWeights w) {
    return new WrongBlockOps(c, w) {
      @Override
      public void output(
          Tensor hidden,
          Tensor routed,
          @Nullable MoeLoraContext lora,
          Tensor output,
          Workspace workspace,
          DeviceStream stream) {
        for (int t = 0; t < output.size(0); t++) {
          for (int h = 0; h < output.size(1); h++) {
            output.set(0, t, h);
          }
        }
        super.output(hidden, routed, lora, output, workspace, stream);
      }
    };
  }

  /** A sum without weights. */
  static BlockOps combineUnweighted(MoeConfig c, MoeLayerWeights w) {
    return new WrongBlockOps(c, w) {
      @Override
      public void combine(
          Tensor batched,
          ExpertRouting routing,
          Tensor routed,
          Workspace workspace,
          DeviceStream stream) {
        Tensor ones = Data.empty(DType.F32, routing.topkIds().shape());
        for (int t = 0; t < ones.size(0); t++) {
          for (int k = 0; k < ones.size(1); k++) {
            ones.set(1, t, k);
          }
        }
        super.combine(
            batched,
            new ExpertRouting(routing.topkIds(), ones, routing.expertMap()),
            routed,
            workspace,
            stream);
      }
    };
  }

  /** Adapters stay with the tokens' old places. */
  static BlockOps dispatchForgetsAdapters(MoeConfig c, MoeLayerWeights w) {
    return new WrongBlockOps(c, w) {
      @Override
      public void dispatch(
          Tensor hidden,
          ExpertRouting routing,
          @Nullable Tensor mapping,
          Tensor batched,
          Tensor counts,
          @Nullable Tensor batchedMapping,
          Workspace workspace,
          DeviceStream stream) {
        super.dispatch(hidden, routing, null, batched, counts, null, workspace, stream);
      }
    };
  }

  /** The router reads what it should not write. */
  static BlockOps hiddenWritten(MoeConfig c, MoeLayerWeights w) {
    return new WrongBlockOps(c, w) {
      @Override
      public void routerLogits(
          Tensor hidden, Tensor logits, Workspace workspace, DeviceStream stream) {
        super.routerLogits(hidden, logits, workspace, stream);
        if (hidden.elementCount() > 0) {
          hidden.set(hidden.get(0, 0) + 1, 0, 0);
        }
      }
    };
  }

  /** One scratch row for all callers. */
  static BlockOps scratchShared(MoeConfig c, MoeLayerWeights w) {
    return new WrongBlockOps(c, w) {
      private double[] scratch = {};

      @Override
      public void output(
          Tensor hidden,
          Tensor routed,
          @Nullable MoeLoraContext lora,
          Tensor output,
          Workspace workspace,
          DeviceStream stream) {
        super.output(hidden, routed, lora, output, workspace, stream);
        for (int t = 0; t < output.size(0); t++) {
          scratch = output.select(0, t).toDoubles();
          LockSupport.parkNanos(1000);
          double[] mine = scratch;
          for (int h = 0; h < mine.length; h++) {
            output.set(mine[h], t, h);
          }
        }
      }
    };
  }

  /** The router's bias is left out. */
  static BlockOps routerBiasForgotten(MoeConfig c, MoeLayerWeights w) {
    RouterWeights r = w.router();
    RouterWeights without =
        r == null
            ? null
            : new RouterWeights(
                r.weight(), null, r.correctionBias(), r.norm(), r.expertScale(), r.tokenExperts());
    return new WrongBlockOps(c, new MoeLayerWeights(w.experts(), without, w.shared(), w.latent()));
  }

  /** Logits are kept in the 16 bits of hidden states. */
  static BlockOps logitsRounded(MoeConfig c, MoeLayerWeights w) {
    return new WrongBlockOps(c, w) {
      @Override
      public void routerLogits(
          Tensor hidden, Tensor logits, Workspace workspace, DeviceStream stream) {
        super.routerLogits(hidden, logits, workspace, stream);
        for (int t = 0; t < logits.size(0); t++) {
          for (int e = 0; e < logits.size(1); e++) {
            float v = (float) logits.get(t, e);
            logits.set(Float.intBitsToFloat(Tensor.toBFloat16(v) << 16), t, e);
          }
        }
      }
    };
  }

  /** An expert that was switched off takes part with the least score there is. */
  static BlockOps minusInfinityChosen(MoeConfig c, MoeLayerWeights w) {
    return new WrongBlockOps(c, w) {
      @Override
      public void route(
          Tensor logits, Tensor ids, Tensor weights, Workspace workspace, DeviceStream stream) {
        Tensor finite = Data.empty(DType.F32, logits.shape());
        for (int t = 0; t < finite.size(0); t++) {
          for (int e = 0; e < finite.size(1); e++) {
            double z = logits.get(t, e);
            finite.set(Double.isInfinite(z) ? 100 : z, t, e);
          }
        }
        super.route(finite, ids, weights, workspace, stream);
      }
    };
  }

  /** Pairs without an expert go to expert 0. */
  static BlockOps minusOneIsExpertZero(MoeConfig c, MoeLayerWeights w) {
    return new WrongBlockOps(c, w) {
      @Override
      public void combine(
          Tensor batched,
          ExpertRouting routing,
          Tensor routed,
          Workspace workspace,
          DeviceStream stream) {
        super.combine(batched, routing, routed, workspace, stream);
        for (int t = 0; t < routed.size(0); t++) {
          if (routing.topkIds().get(t, 1) == -1) {
            routed.set(routed.get(t, 0) + batched.get(0, 0, 0), t, 0);
          }
        }
      }
    };
  }

  /** An empty launch is an error. */
  static BlockOps zeroTokensThrow(MoeConfig c, MoeLayerWeights w) {
    return new WrongBlockOps(c, w) {
      @Override
      public void output(
          Tensor hidden,
          Tensor routed,
          @Nullable MoeLoraContext lora,
          Tensor output,
          Workspace workspace,
          DeviceStream stream) {
        if (hidden.size(0) == 0) {
          throw new IllegalArgumentException("grid of 0 blocks");
        }
        super.output(hidden, routed, lora, output, workspace, stream);
      }
    };
  }

  /** Whole vectors are stored. */
  static BlockOps writesPastOutput(MoeConfig c, MoeLayerWeights w) {
    return new WrongBlockOps(c, w) {
      @Override
      public void output(
          Tensor hidden,
          Tensor routed,
          @Nullable MoeLoraContext lora,
          Tensor output,
          Workspace workspace,
          DeviceStream stream) {
        super.output(hidden, routed, lora, output, workspace, stream);
        long end = output.byteOffset() + output.dtype().byteSize(output.elementCount());
        ((HostMemory) output.memory()).segment().set(ValueLayout.JAVA_BYTE, end, (byte) 1);
      }
    };
  }

  /** Takes device memory and keeps it. */
  static BlockOpsProvider leaks() {
    return new BlockOpsProvider() {
      @Override
      public DeviceType deviceType() {
        return DeviceType.CPU;
      }

      @Override
      public Support isSupportedConfig(MoeConfig config) {
        return Support.yes();
      }

      @Override
      public BlockOps prepare(MoeConfig config, MoeLayerWeights weights, Device device) {
        var _ = device.allocate(100);
        return new ReferenceBlockOps(config, weights);
      }
    };
  }

  /** Frees twice. */
  static BlockOps secondCloseThrows(MoeConfig c, MoeLayerWeights w) {
    return new WrongBlockOps(c, w) {
      private boolean closed;

      @Override
      public void close() {
        if (closed) {
          throw new IllegalStateException("already freed");
        }
        closed = true;
        super.close();
      }
    };
  }

  /** Norms multiply by their factors and divide by nothing. */
  static BlockOps normsOnlyMultiply(MoeConfig c, MoeLayerWeights w) {
    return new WrongBlockOps(c, w) {
      @Override
      public void inputNorm(
          Tensor hidden, Tensor normed, Workspace workspace, DeviceStream stream) {
        multiply(hidden, java.util.Objects.requireNonNull(w.inputNorm()), normed);
      }

      private static void multiply(Tensor hidden, Tensor factors, Tensor normed) {
        for (int t = 0; t < hidden.size(0); t++) {
          for (int h = 0; h < hidden.size(1); h++) {
            normed.set(hidden.get(t, h) * factors.get(h), t, h);
          }
        }
      }
    };
  }

  /** Adapters on the router read what the experts read. */
  static BlockOps routerNormForgotten(MoeConfig c, MoeLayerWeights w) {
    return new WrongBlockOps(c, w) {
      @Override
      public void routerNorm(
          Tensor hidden, Tensor normed, Workspace workspace, DeviceStream stream) {
        for (int t = 0; t < hidden.size(0); t++) {
          for (int h = 0; h < hidden.size(1); h++) {
            normed.set(hidden.get(t, h), t, h);
          }
        }
      }
    };
  }

  /** What zero experts give counts once, whatever their weight. */
  static BlockOps zeroExpertsUnweighted(MoeConfig c, MoeLayerWeights w) {
    return new WrongBlockOps(c, w) {
      @Override
      public void addZeroExperts(
          Tensor hidden, Tensor zeroWeights, Tensor routed, DeviceStream stream) {
        Tensor ones = Tensor.ofFloats(new float[(int) zeroWeights.size(0)], zeroWeights.size(0));
        for (int t = 0; t < ones.size(0); t++) {
          ones.set(zeroWeights.get(t) == 0 ? 0 : 1, t);
        }
        super.addZeroExperts(hidden, ones, routed, stream);
      }
    };
  }

  @Override
  public long workspaceBytes(int maxTokens) {
    return right.workspaceBytes(maxTokens);
  }

  @Override
  public void inputNorm(Tensor hidden, Tensor normed, Workspace workspace, DeviceStream stream) {
    right.inputNorm(hidden, normed, workspace, stream);
  }

  @Override
  public void routerNorm(Tensor hidden, Tensor normed, Workspace workspace, DeviceStream stream) {
    right.routerNorm(hidden, normed, workspace, stream);
  }

  @Override
  public void splitZeroExperts(
      Tensor topkIds,
      Tensor topkWeights,
      Tensor expertIds,
      Tensor zeroWeights,
      DeviceStream stream) {
    right.splitZeroExperts(topkIds, topkWeights, expertIds, zeroWeights, stream);
  }

  @Override
  public void addZeroExperts(
      Tensor hidden, Tensor zeroWeights, Tensor routed, DeviceStream stream) {
    right.addZeroExperts(hidden, zeroWeights, routed, stream);
  }

  @Override
  public void routerLogits(Tensor hidden, Tensor logits, Workspace workspace, DeviceStream stream) {
    right.routerLogits(hidden, logits, workspace, stream);
  }

  @Override
  public void route(
      Tensor logits, Tensor ids, Tensor weights, Workspace workspace, DeviceStream stream) {
    right.route(logits, ids, weights, workspace, stream);
  }

  @Override
  public void routeByTokenId(
      Tensor logits,
      Tensor tokenIds,
      Tensor ids,
      Tensor weights,
      Workspace workspace,
      DeviceStream stream) {
    right.routeByTokenId(logits, tokenIds, ids, weights, workspace, stream);
  }

  @Override
  public void latentIn(
      Tensor hidden,
      @Nullable MoeLoraContext lora,
      Tensor latent,
      Workspace workspace,
      DeviceStream stream) {
    right.latentIn(hidden, lora, latent, workspace, stream);
  }

  @Override
  public void output(
      Tensor hidden,
      Tensor routed,
      @Nullable MoeLoraContext lora,
      Tensor output,
      Workspace workspace,
      DeviceStream stream) {
    right.output(hidden, routed, lora, output, workspace, stream);
  }

  @Override
  public void dispatch(
      Tensor hidden,
      ExpertRouting routing,
      @Nullable Tensor mapping,
      Tensor batched,
      Tensor counts,
      @Nullable Tensor batchedMapping,
      Workspace workspace,
      DeviceStream stream) {
    right.dispatch(hidden, routing, mapping, batched, counts, batchedMapping, workspace, stream);
  }

  @Override
  public void combine(
      Tensor batched,
      ExpertRouting routing,
      Tensor routed,
      Workspace workspace,
      DeviceStream stream) {
    right.combine(batched, routing, routed, workspace, stream);
  }

  @Override
  public void close() {
    right.close();
  }
}
