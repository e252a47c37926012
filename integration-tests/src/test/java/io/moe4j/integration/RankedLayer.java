package io.moe4j.integration;

import io.moe4j.api.comm.Communicator;
import io.moe4j.api.config.Activation;
import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.SharedExpertConfig;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.RouterWeights;
import io.moe4j.api.weights.SharedExpertWeights;
import io.moe4j.lora.AdapterBatch;
import io.moe4j.lora.AdapterRegistry;
import io.moe4j.oracle.MoeForward;
import io.moe4j.oracle.MoeLayer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;

/** A layer with a shared expert and two adapters, the same in every process; whole or a rank's. */
final class RankedLayer {
  static final int E = 10;
  static final int H = 24;
  private static final int I = 16;
  static final int[] TOKENS = {5, 7, 0, 11};

  private final Random random = new Random(5);
  final List<ExpertWeights.Expert> experts = new ArrayList<>();
  final RouterWeights router = new RouterWeights(normal(E, H), null, null);
  final SharedExpertWeights shared =
      new SharedExpertWeights(
          ExpertWeights.Expert.plain(normal(8, H), normal(8, H), normal(H, 8)), null);
  private final List<Map<LoraTarget, LoraFactors>> adapters = new ArrayList<>();

  RankedLayer() {
    for (int e = 0; e < E; e++) {
      experts.add(ExpertWeights.Expert.plain(normal(I, H), normal(I, H), normal(H, I)));
    }
    for (int rank : new int[] {3, 8}) {
      adapters.add(
          Map.of(
              LoraTarget.UP, new LoraFactors(normal(E, rank, H), normal(E, I, rank)),
              LoraTarget.DOWN, new LoraFactors(normal(E, rank, I), normal(E, H, rank))));
    }
  }

  Tensor normal(long... shape) {
    long n = Arrays.stream(shape).reduce(1, Math::multiplyExact);
    float[] values = new float[Math.toIntExact(n)];
    for (int i = 0; i < values.length; i++) {
      values[i] = (float) random.nextGaussian() * 0.3f;
    }
    return Tensor.ofFloats(values, shape);
  }

  static MoeConfig.Builder config() {
    return MoeConfig.builder(H, I, E, 3)
        .weightDtype(DType.F32)
        .lora(new LoraConfig(2, 8))
        .sharedExpert(new SharedExpertConfig(8, Activation.SILU, false))
        .maxTokens(32);
  }

  Tensor run(MoeConfig config, Communicator communicator, Tensor hidden, List<String> names) {
    ExpertMap map = config.expertMap().orElse(ExpertMap.linear(E, 1, 0));
    ExpertWeights.Expert[] mine = new ExpertWeights.Expert[map.numLocalExperts()];
    for (int e = 0; e < E; e++) {
      if (map.local(e) >= 0) {
        mine[map.local(e)] = experts.get(e);
      }
    }
    MoeLayerWeights weights =
        new MoeLayerWeights(new ExpertWeights(List.of(mine)), router, shared, null);
    Tensor output = Tensor.ofFloats(new float[names.size() * H], names.size(), H);
    MoeLayer.Builder builder = MoeLayer.builder(config, weights);
    if (communicator != null) {
      builder.communicator(communicator);
    }
    try (MoeLayer layer = builder.build();
        AdapterRegistry registry = AdapterRegistry.builder(Map.of(0, config)).build()) {
      for (int a = 0; a < adapters.size(); a++) {
        registry.load(new LoraAdapter("a" + a, Map.of(0, local(adapters.get(a), map))));
      }
      // Both adapters in every batch, in one order: slots agree between ranks.
      List<String> pinned = new ArrayList<>(List.of("a0", "a1"));
      pinned.addAll(names);
      try (AdapterBatch batch = registry.batch(pinned)) {
        var context = batch.context(0);
        layer.forward(
            MoeForward.of(hidden, output)
                .withLora(
                    context.withTokenLoraMapping(
                        context.tokenLoraMapping().narrow(0, 2, names.size()))));
      }
    }
    return output;
  }

  private static LoraLayer local(Map<LoraTarget, LoraFactors> all, ExpertMap map) {
    Map<LoraTarget, LoraFactors> local = new java.util.EnumMap<>(LoraTarget.class);
    all.forEach(
        (target, f) -> local.put(target, new LoraFactors(pick(f.a(), map), pick(f.b(), map))));
    return new LoraLayer(local);
  }

  private static Tensor pick(Tensor all, ExpertMap map) {
    Tensor some =
        Tensor.ofFloats(
            new float[Math.toIntExact(map.numLocalExperts() * all.size(1) * all.size(2))],
            map.numLocalExperts(),
            all.size(1),
            all.size(2));
    for (int e = 0; e < E; e++) {
      if (map.local(e) >= 0) {
        some.select(0, map.local(e)).segment().copyFrom(all.select(0, e).segment());
      }
    }
    return some;
  }

  /** {@return the tokens of each rank; the first call of a model gives the same everywhere} */
  Tensor[] hidden(int ranks) {
    Tensor[] hidden = new Tensor[ranks];
    for (int r = 0; r < ranks; r++) {
      hidden[r] = normal(TOKENS[r], H);
    }
    return hidden;
  }

  static List<String> names(int rank) {
    List<String> names = new ArrayList<>();
    for (int t = 0; t < TOKENS[rank]; t++) {
      names.add(new String[] {"", "a0", "a1"}[(t + rank) % 3]);
    }
    return names;
  }
}
