package io.moe4j.reference;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.RmsNorm;
import io.moe4j.api.config.SharedExpertConfig.Combine;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.LatentWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.RouterWeights;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * {@link ReferenceMoe} and {@link ReferenceRouting} as the operations around the experts. Needs no
 * workspace, holds views only.
 */
public final class ReferenceBlockOps implements BlockOps {
  private final MoeConfig config;
  private final MoeLayerWeights weights;

  /**
   * The reference of one layer.
   *
   * @param config the layer
   * @param weights fits {@code config}, in host memory
   */
  public ReferenceBlockOps(MoeConfig config, MoeLayerWeights weights) {
    this.config = config;
    this.weights = weights;
  }

  @Override
  public long workspaceBytes(int maxTokens) {
    return 0;
  }

  @Override
  public void routerLogits(Tensor hidden, Tensor logits, Workspace workspace, DeviceStream stream) {
    RouterWeights router = weights.router();
    if (router == null) {
      throw new IllegalStateException(
          "the layer's weights hold no router; bring logits or topk ids");
    }
    for (int t = 0; t < hidden.size(0); t++) {
      TensorRows.write(
          ReferenceMoe.routerLogits(config.routing(), router, TensorRows.read(hidden, t)),
          logits,
          t);
    }
  }

  @Override
  public void route(
      Tensor logits, Tensor topkIds, Tensor topkWeights, Workspace workspace, DeviceStream stream) {
    route(logits, null, topkIds, topkWeights);
  }

  @Override
  public void routeByTokenId(
      Tensor logits,
      Tensor tokenIds,
      Tensor topkIds,
      Tensor topkWeights,
      Workspace workspace,
      DeviceStream stream) {
    route(logits, tokenIds, topkIds, topkWeights);
  }

  private void route(Tensor logits, @Nullable Tensor tokenIds, Tensor topkIds, Tensor topkWeights) {
    double[] bias = correctionBias();
    RouterWeights router = weights.router();
    Tensor scale = router == null ? null : router.expertScale();
    Tensor table = router == null ? null : router.tokenExperts();
    int[] ids = new int[Math.toIntExact(topkIds.size(1))];
    double[] chosenWeights = new double[ids.length];
    for (int t = 0; t < logits.size(0); t++) {
      ReferenceRouting.route(
          config.routing(),
          TensorRows.read(logits, t),
          bias,
          scale == null ? null : scale.toDoubles(),
          tokenIds == null || table == null
              ? null
              : table.select(0, (long) tokenIds.get(t)).toInts(),
          ids,
          chosenWeights);
      TensorRows.write(chosenWeights, topkWeights, t);
      for (int k = 0; k < ids.length; k++) {
        topkIds.set(ids[k], t, k);
      }
    }
  }

  private double @Nullable [] correctionBias() {
    if (!config.routing().correctionBias()) {
      return null;
    }
    RouterWeights router = weights.router();
    if (router == null || router.correctionBias() == null) {
      throw new IllegalStateException(
          "routing has a correction bias, but the layer's weights hold no router");
    }
    return router.correctionBias().toDoubles();
  }

  @Override
  public void inputNorm(Tensor hidden, Tensor normed, Workspace workspace, DeviceStream stream) {
    RmsNorm norm = config.inputNorm().orElseThrow();
    Tensor factors = Objects.requireNonNull(weights.inputNorm(), "inputNorm");
    for (int t = 0; t < hidden.size(0); t++) {
      TensorRows.write(ReferenceMoe.normed(norm, factors, TensorRows.read(hidden, t)), normed, t);
    }
  }

  @Override
  public void routerNorm(Tensor hidden, Tensor normed, Workspace workspace, DeviceStream stream) {
    RmsNorm norm = config.routing().inputNorm().orElseThrow();
    RouterWeights router = Objects.requireNonNull(weights.router(), "router");
    Tensor factors = Objects.requireNonNull(router.norm(), "router norm");
    for (int t = 0; t < hidden.size(0); t++) {
      TensorRows.write(ReferenceMoe.normed(norm, factors, TensorRows.read(hidden, t)), normed, t);
    }
  }

  @Override
  public void splitZeroExperts(
      Tensor topkIds,
      Tensor topkWeights,
      Tensor expertIds,
      Tensor zeroWeights,
      DeviceStream stream) {
    for (int t = 0; t < topkIds.size(0); t++) {
      double sum = 0;
      for (int k = 0; k < topkIds.size(1); k++) {
        boolean zero = topkIds.get(t, k) >= config.numExperts();
        sum += zero ? topkWeights.get(t, k) : 0;
        expertIds.set(zero ? -1 : topkIds.get(t, k), t, k);
      }
      zeroWeights.set(sum, t);
    }
  }

  @Override
  public void addZeroExperts(
      Tensor hidden, Tensor zeroWeights, Tensor routed, DeviceStream stream) {
    for (int t = 0; t < hidden.size(0); t++) {
      double[] x = TensorRows.read(hidden, t);
      double[] sum = TensorRows.read(routed, t);
      for (int h = 0; h < sum.length; h++) {
        sum[h] += zeroWeights.get(t) * x[h];
      }
      TensorRows.write(sum, routed, t);
    }
  }

  @Override
  public void latentIn(
      Tensor hidden,
      @Nullable MoeLoraContext lora,
      Tensor latent,
      Workspace workspace,
      DeviceStream stream) {
    LatentWeights projections = weights.latent();
    if (projections == null) {
      throw new IllegalStateException("the layer has no latent projections (latentSize is 0)");
    }
    for (int t = 0; t < hidden.size(0); t++) {
      LoraLayer adapter = ReferenceMoe.adapter(lora, t);
      TensorRows.write(
          ReferenceMoe.latentIn(projections, TensorRows.read(hidden, t), adapter), latent, t);
    }
  }

  @Override
  public void output(
      Tensor hidden,
      Tensor routed,
      @Nullable MoeLoraContext lora,
      Tensor output,
      Workspace workspace,
      DeviceStream stream) {
    for (int t = 0; t < hidden.size(0); t++) {
      LoraLayer adapter = ReferenceMoe.adapter(lora, t);
      double[] y = TensorRows.read(routed, t);
      if (weights.latent() != null) {
        y = ReferenceMoe.latentOut(weights.latent(), y, adapter);
      }
      if (weights.shared() != null) {
        double[] shared =
            ReferenceMoe.sharedExpert(
                config.sharedExpert().orElseThrow(),
                weights.shared(),
                TensorRows.read(hidden, t),
                adapter,
                config.quantizedActivations());
        boolean average = config.sharedExpert().orElseThrow().combine() == Combine.AVERAGE;
        for (int h = 0; h < y.length; h++) {
          y[h] = average ? (y[h] + shared[h]) / 2 : y[h] + shared[h];
        }
      }
      ReferenceMath.addBias(y, weights.outputBias());
      TensorRows.write(y, output, t);
    }
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
    int[] counts = new int[config.numLocalExperts()];
    routing.forEachLocalPair(
        config.numLocalExperts(),
        (t, k, e) -> {
          int row = counts[e]++;
          if (row >= batched.size(1)) {
            throw new IllegalArgumentException(
                "expert "
                    + e
                    + " has more pairs than batched "
                    + batched
                    + " has rows ("
                    + batched.size(1)
                    + ")");
          }
          double[] x = TensorRows.read(hidden, t);
          if (config.routerWeightOnInput()) {
            double weight = routing.topkWeights().get(t, k);
            for (int h = 0; h < x.length; h++) {
              x[h] *= weight;
            }
          }
          TensorRows.write(x, batched, e, row);
          if (tokenLoraMapping != null && batchedLoraMapping != null) {
            batchedLoraMapping.set(tokenLoraMapping.get(t), e, row);
          }
        });
    for (int e = 0; e < counts.length; e++) {
      expertNumTokens.set(counts[e], e);
    }
  }

  @Override
  public void combine(
      Tensor batched,
      ExpertRouting routing,
      Tensor routed,
      Workspace workspace,
      DeviceStream stream) {
    int tokens = Math.toIntExact(routed.size(0));
    double[][] sums = new double[tokens][Math.toIntExact(routed.size(1))];
    int[] rows = new int[config.numLocalExperts()];
    routing.forEachLocalPair(
        config.numLocalExperts(),
        (t, k, e) -> {
          double weight = config.routerWeightOnInput() ? 1 : routing.topkWeights().get(t, k);
          double[] y = TensorRows.read(batched, e, rows[e]++);
          for (int h = 0; h < y.length; h++) {
            sums[t][h] += weight * y[h];
          }
        });
    for (int t = 0; t < tokens; t++) {
      TensorRows.write(sums[t], routed, t);
    }
  }

  @Override
  public void close() {}
}
