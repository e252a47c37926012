package io.moe4j.tck;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.util.EnumMap;
import java.util.Map;

/**
 * Adapters whose deltas are about as large as what they are added to, so that none can be missed.
 */
final class Adapters {
  private Adapters() {}

  /** One dense pair, {@code a} {@code [aExperts, r, in]}, {@code b} {@code [bExperts, out, r]}. */
  static LoraFactors factors(
      Data data, DType dtype, int aExperts, int bExperts, int rank, int in, int out) {
    return new LoraFactors(
        data.normal(dtype, 1 / Math.sqrt(in), aExperts, rank, in),
        data.normal(dtype, 1 / Math.sqrt(rank), bExperts, out, rank));
  }

  /** Factors for the routed targets that {@code ranks} names. */
  static LoraLayer routed(
      MoeConfig config, Data data, DType dtype, Map<LoraTarget, Integer> ranks) {
    var factors = new EnumMap<LoraTarget, LoraFactors>(LoraTarget.class);
    int e = config.numLocalExperts();
    ranks.forEach((target, rank) -> {
      if (target == LoraTarget.GATE && !config.activation().isGated()) {
        return;
      }
      boolean down = target == LoraTarget.DOWN;
      int in = down ? config.intermediateSize() : config.expertHiddenSize();
      int out = down ? config.expertHiddenSize() : config.intermediateSize();
      factors.put(target, factors(data, dtype, e, e, rank, in, out));
    });
    return new LoraLayer(factors);
  }

  /** Gate, up and down of one rank. */
  static LoraLayer all(MoeConfig config, Data data, DType dtype, int rank) {
    return routed(
        config,
        data,
        dtype,
        Map.of(LoraTarget.GATE, rank, LoraTarget.UP, rank, LoraTarget.DOWN, rank));
  }

  /**
   * Gate and up read one A, as adapters on a fused gate_up tensor do; B is one tensor cut in two.
   */
  static LoraLayer fused(MoeConfig config, Data data, DType dtype, int rank) {
    int e = config.numLocalExperts();
    int i = config.intermediateSize();
    int h = config.expertHiddenSize();
    LoraFactors both = factors(data, dtype, e, e, rank, h, 2 * i);
    var factors = new EnumMap<LoraTarget, LoraFactors>(LoraTarget.class);
    factors.put(LoraTarget.UP, new LoraFactors(both.a(), both.b().narrow(1, i, i)));
    if (config.activation().isGated()) {
      factors.put(LoraTarget.GATE, new LoraFactors(both.a(), both.b().narrow(1, 0, i)));
    }
    return new LoraLayer(factors);
  }

  /** Gate and up share A across experts, down shares B. */
  static LoraLayer sharedAcrossExperts(MoeConfig config, Data data, DType dtype, int rank) {
    int e = config.numLocalExperts();
    int i = config.intermediateSize();
    int h = config.expertHiddenSize();
    var factors = new EnumMap<LoraTarget, LoraFactors>(LoraTarget.class);
    if (config.activation().isGated()) {
      factors.put(LoraTarget.GATE, factors(data, dtype, 1, e, rank, h, i));
    }
    factors.put(LoraTarget.UP, factors(data, dtype, 1, e, rank, h, i));
    factors.put(LoraTarget.DOWN, factors(data, dtype, e, 1, rank, i, h));
    return new LoraLayer(factors);
  }

  /** The same factors as views: B rank-major, A repeated along the experts with stride 0. */
  static LoraLayer strided(MoeConfig config, Data data, DType dtype, int rank) {
    int e = config.numLocalExperts();
    int i = config.intermediateSize();
    int h = config.expertHiddenSize();
    var factors = new EnumMap<LoraTarget, LoraFactors>(LoraTarget.class);
    if (config.activation().isGated()) {
      factors.put(LoraTarget.GATE, stridedFactors(data, dtype, e, rank, h, i));
    }
    factors.put(LoraTarget.UP, stridedFactors(data, dtype, e, rank, h, i));
    factors.put(LoraTarget.DOWN, stridedFactors(data, dtype, e, rank, i, h));
    return new LoraLayer(factors);
  }

  private static LoraFactors stridedFactors(
      Data data, DType dtype, int experts, int rank, int in, int out) {
    Tensor a = data.normal(dtype, 1 / Math.sqrt(in), rank, in).expand(experts);
    // [out, r, E] as PEFT writes it: the expert is the fastest index
    Tensor b = data.normal(dtype, 1 / Math.sqrt(rank), out, rank, experts);
    return new LoraFactors(a, b.transpose(0, 2).transpose(1, 2));
  }

  /** Factors for every map of a block that is not a routed expert. */
  static LoraLayer dense(MoeConfig config, Data data, DType dtype, int rank) {
    var factors = new EnumMap<LoraTarget, LoraFactors>(LoraTarget.class);
    int h = config.hiddenSize();
    config
        .sharedExpert()
        .ifPresent(shared -> {
          int i = shared.intermediateSize();
          if (shared.activation().isGated()) {
            factors.put(LoraTarget.SHARED_GATE, factors(data, dtype, 1, 1, rank, h, i));
          }
          factors.put(LoraTarget.SHARED_UP, factors(data, dtype, 1, 1, rank + 1, h, i));
          factors.put(LoraTarget.SHARED_DOWN, factors(data, dtype, 1, 1, rank + 2, i, h));
          if (shared.sigmoidGate()) {
            factors.put(LoraTarget.SHARED_EXPERT_GATE, factors(data, dtype, 1, 1, rank, h, 1));
          }
        });
    if (config.latentSize() > 0) {
      int d = config.latentSize();
      factors.put(LoraTarget.LATENT_IN, factors(data, dtype, 1, 1, rank, h, d));
      factors.put(LoraTarget.LATENT_OUT, factors(data, dtype, 1, 1, rank + 1, d, h));
    }
    return new LoraLayer(factors);
  }
}
