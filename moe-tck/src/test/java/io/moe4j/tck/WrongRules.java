package io.moe4j.tck;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.config.RoutingConfig.GroupScore;
import io.moe4j.api.config.RoutingConfig.Scoring;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.RouterWeights;
import java.util.EnumMap;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Objects;
import java.util.function.UnaryOperator;

/** Mistakes in routing: one for each score function and each part of the rule. */
final class WrongRules {
  private WrongRules() {}

  /** What a score function is easily taken for. */
  static Map<Scoring, Scoring> scorings() {
    Map<Scoring, Scoring> taken = new EnumMap<>(Scoring.class);
    taken.put(Scoring.SOFTMAX, Scoring.SOFTMAX_TOPK);
    taken.put(Scoring.SOFTMAX_TOPK, Scoring.SOFTMAX);
    taken.put(Scoring.SIGMOID, Scoring.SQRT_SOFTPLUS);
    taken.put(Scoring.SQRT_SOFTPLUS, Scoring.SIGMOID);
    taken.put(Scoring.SPARSE_MIXER, Scoring.SOFTMAX_TOPK);
    return taken;
  }

  /** Another score function for one of them. */
  static WrongBlockOps.Maker taking(Scoring scoring, Scoring other) {
    return rule(r -> r.scoring() == scoring ? scoredBy(r, other) : r);
  }

  private static RoutingConfig scoredBy(RoutingConfig r, Scoring scoring) {
    return RoutingConfig.builder(scoring)
        .renormalize(r.renormalize())
        .epsilon(r.epsilon())
        .scalingFactor(r.scalingFactor())
        .groups(r.numGroups(), r.topkGroups(), r.groupScore())
        .correctionBias(r.correctionBias())
        .sumFloor(r.sumFloor())
        .expertScale(r.expertScale())
        .byTokenId(r.byTokenId())
        .inputNorm(r.inputNorm().orElse(null))
        .build();
  }

  private static WrongBlockOps.Maker rule(UnaryOperator<RoutingConfig> change) {
    return (c, w) -> new WrongBlockOps(c.toBuilder().routing(change.apply(c.routing())).build(), w);
  }

  /** By accessor of {@link RoutingConfig}. */
  static Map<String, WrongBlockOps.Maker> fields() {
    Map<String, WrongBlockOps.Maker> mistakes = new LinkedHashMap<>();
    mistakes.put("scoring", taking(Scoring.SIGMOID, Scoring.SOFTMAX));
    mistakes.put("renormalize", rule(r -> r.toBuilder().renormalize(false).build()));
    mistakes.put("epsilon", rule(r -> r.toBuilder().epsilon(0).build()));
    mistakes.put("scalingFactor", rule(r -> r.toBuilder().scalingFactor(1).build()));
    mistakes.put("numGroups", rule(r -> r.toBuilder().groups(1, 1, r.groupScore()).build()));
    mistakes.put(
        "topkGroups",
        rule(r -> r.toBuilder().groups(r.numGroups(), r.numGroups(), r.groupScore()).build()));
    mistakes.put(
        "groupScore",
        rule(r -> r.toBuilder().groups(r.numGroups(), r.topkGroups(), GroupScore.MAX).build()));
    mistakes.put("correctionBias", rule(r -> r.toBuilder().correctionBias(false).build()));
    mistakes.put("jitter", rule(r -> r.toBuilder().jitter(0).build()));
    mistakes.put("sumFloor", rule(r -> r.toBuilder().sumFloor(0).build()));
    mistakes.put(
        "expertScale",
        (c, w) ->
            new WrongBlockOps(
                c,
                new MoeLayerWeights(
                    w.experts(),
                    unscaled(Objects.requireNonNull(w.router())),
                    w.shared(),
                    w.latent())));
    mistakes.put("inputNorm", rule(r -> r.toBuilder().inputNorm(null).build()));
    mistakes.put("byTokenId", WrongRules::chosenByScore);
    return mistakes;
  }

  private static RouterWeights unscaled(RouterWeights r) {
    return new RouterWeights(
        r.weight(), r.bias(), r.correctionBias(), r.norm(), null, r.tokenExperts());
  }

  private static BlockOps chosenByScore(MoeConfig c, MoeLayerWeights w) {
    BlockOps byScore =
        new WrongBlockOps(
            c.toBuilder().routing(c.routing().toBuilder().byTokenId(false).build()).build(), w);
    return new WrongBlockOps(c, w) {
      @Override
      public void routeByTokenId(
          Tensor logits,
          Tensor tokenIds,
          Tensor ids,
          Tensor weights,
          Workspace workspace,
          DeviceStream stream) {
        byScore.route(logits, ids, weights, workspace, stream);
      }
    };
  }

  /** Weights are what was chosen on, not the scores. */
  static WrongBlockOps.Maker biasInWeights() {
    return (c, w) ->
        new WrongBlockOps(c, w) {
          @Override
          public void route(
              Tensor logits, Tensor ids, Tensor weights, Workspace workspace, DeviceStream stream) {
            super.route(logits, ids, weights, workspace, stream);
            if (!c.routing().correctionBias()) {
              return;
            }
            Tensor bias =
                Objects.requireNonNull(Objects.requireNonNull(w.router()).correctionBias());
            for (int t = 0; t < ids.size(0); t++) {
              for (int k = 0; k < ids.size(1); k++) {
                weights.set(weights.get(t, k) + bias.get((long) ids.get(t, k)), t, k);
              }
            }
          }
        };
  }

  /** A sum of the two best where the rule says the best. */
  static WrongBlockOps.Maker groupSumForMax() {
    return rule(r ->
        r.numGroups() == 1
            ? r
            : r.toBuilder().groups(r.numGroups(), r.topkGroups(), GroupScore.SUM_OF_TOP2).build());
  }
}
