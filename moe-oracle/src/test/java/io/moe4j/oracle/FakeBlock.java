package io.moe4j.oracle;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.spi.Fact;
import io.moe4j.api.tensor.Tensor;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * A block simple enough to be followed by hand: the logit of expert {@code e} is {@code -((x0 + e)
 * mod E)}, so that token value {@code x0 = 0} chooses experts 0, 1, ... and {@code x0 = 1} begins
 * with the last; weights are {@code 1 / (k + 1)}; the latent input is twice the hidden one; output
 * adds 1000.
 */
final class FakeBlock implements BlockOps {
  private final FakeDevice device;
  private final MoeConfig config;

  FakeBlock(FakeDevice device, MoeConfig config) {
    this.device = device;
    this.config = config;
  }

  private void note(String what, Tensor t, DeviceStream stream) {
    device.events.add(what + " " + t + " on " + stream);
  }

  @Override
  public long workspaceBytes(int maxTokens) {
    return device.blockWorkspacePerToken * maxTokens;
  }

  @Override
  public List<Fact> facts() {
    return device.blockFacts;
  }

  @Override
  public boolean routesAlone() {
    return device.routesAlone;
  }

  @Override
  public void routerLogits(Tensor hidden, Tensor logits, Workspace workspace, DeviceStream stream) {
    note("routerLogits", logits, stream);
    if (!device.isHost()) {
      return;
    }
    for (long t = 0; t < hidden.size(0); t++) {
      for (long e = 0; e < config.numExperts(); e++) {
        logits.set((double) -(((long) hidden.get(t, 0) + e) % config.numExperts()), t, e);
      }
    }
  }

  @Override
  public void route(
      Tensor logits, Tensor topkIds, Tensor topkWeights, Workspace workspace, DeviceStream stream) {
    note("route", topkIds, stream);
    if (device.isHost()) {
      choose(logits, topkIds, topkWeights);
    }
  }

  /** What {@link #route} does. */
  static void choose(Tensor logits, Tensor topkIds, Tensor topkWeights) {
    for (long t = 0; t < logits.size(0); t++) {
      for (int k = 0; k < topkIds.size(1); k++) {
        for (int e = 0; e < logits.size(1); e++) {
          if (rank(logits, t, e) == k) {
            topkIds.set(e, t, k);
            topkWeights.set(1.0 / (k + 1), t, k);
          }
        }
      }
    }
  }

  private static int rank(Tensor logits, long t, int e) {
    int better = 0;
    for (int o = 0; o < logits.size(1); o++) {
      double difference = logits.get(t, o) - logits.get(t, e);
      better += difference > 0 || (difference == 0 && o < e) ? 1 : 0;
    }
    return better;
  }

  /** Every id has the first experts. */
  @Override
  public void routeByTokenId(
      Tensor logits,
      Tensor tokenIds,
      Tensor topkIds,
      Tensor topkWeights,
      Workspace workspace,
      DeviceStream stream) {
    note("routeByTokenId", topkIds, stream);
    for (long t = 0; t < logits.size(0); t++) {
      for (int k = 0; k < config.topK(); k++) {
        topkIds.set(k, t, k);
        topkWeights.set(1, t, k);
      }
    }
  }

  @Override
  public void splitZeroExperts(
      Tensor topkIds,
      Tensor topkWeights,
      Tensor expertIds,
      Tensor zeroWeights,
      DeviceStream stream) {
    note("splitZeroExperts", expertIds, stream);
    for (long t = 0; t < topkIds.size(0); t++) {
      double zero = 0;
      for (long k = 0; k < topkIds.size(1); k++) {
        boolean isZero = topkIds.get(t, k) >= config.numExperts();
        zero += isZero ? topkWeights.get(t, k) : 0;
        expertIds.set(isZero ? -1 : topkIds.get(t, k), t, k);
      }
      zeroWeights.set(zero, t);
    }
  }

  @Override
  public void addZeroExperts(
      Tensor hidden, Tensor zeroWeights, Tensor routed, DeviceStream stream) {
    note("addZeroExperts", routed, stream);
    for (long t = 0; t < hidden.size(0); t++) {
      for (long h = 0; h < hidden.size(1); h++) {
        routed.set(routed.get(t, h) + zeroWeights.get(t) * hidden.get(t, h), t, h);
      }
    }
  }

  @Override
  public void latentIn(
      Tensor hidden,
      @Nullable MoeLoraContext lora,
      Tensor latent,
      Workspace workspace,
      DeviceStream stream) {
    note("latentIn", latent, stream);
    for (long t = 0; t < hidden.size(0); t++) {
      for (long d = 0; d < latent.size(1); d++) {
        latent.set(2 * hidden.get(t, d), t, d);
      }
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
    note("output " + routed + " ->", output, stream);
    if (!device.isHost()) {
      return;
    }
    for (long t = 0; t < output.size(0); t++) {
      for (long h = 0; h < output.size(1); h++) {
        double value = h < routed.size(1) ? routed.get(t, h) : 0;
        output.set(value + (config.sharedExpert().isPresent() ? 1000 : 0), t, h);
      }
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
    note("dispatch", batched, stream);
    for (long e = 0; e < batched.size(0); e++) {
      expertNumTokens.set(0, e);
    }
    forEachPair(
        routing,
        (t, k, e, row) -> {
          for (long h = 0; h < hidden.size(1); h++) {
            batched.set(hidden.get(t, h), e, row, h);
          }
          expertNumTokens.set(row + 1, e);
          if (tokenLoraMapping != null && batchedLoraMapping != null) {
            batchedLoraMapping.set(tokenLoraMapping.get(t), e, row);
          }
        });
  }

  @Override
  public void combine(
      Tensor batched,
      ExpertRouting routing,
      Tensor routed,
      Workspace workspace,
      DeviceStream stream) {
    note("combine", routed, stream);
    for (long t = 0; t < routed.size(0); t++) {
      for (long h = 0; h < routed.size(1); h++) {
        routed.set(0, t, h);
      }
    }
    forEachPair(
        routing,
        (t, k, e, row) -> {
          for (long h = 0; h < routed.size(1); h++) {
            double add = routing.topkWeights().get(t, k) * batched.get(e, row, h);
            routed.set(routed.get(t, h) + add, t, h);
          }
        });
  }

  private interface Pair {
    void at(long token, long k, int local, int row);
  }

  private void forEachPair(ExpertRouting routing, Pair pair) {
    int[] rows = new int[config.numLocalExperts()];
    for (long t = 0; t < routing.topkIds().size(0); t++) {
      for (long k = 0; k < routing.topkIds().size(1); k++) {
        int local = local(routing, (int) routing.topkIds().get(t, k));
        if (local >= 0) {
          pair.at(t, k, local, rows[local]++);
        }
      }
    }
  }

  static int local(ExpertRouting routing, int id) {
    if (id < 0 || routing.expertMap() == null) {
      return id;
    }
    return (int) routing.expertMap().get(id);
  }

  @Override
  public void close() {
    device.events.add("close block");
  }
}
