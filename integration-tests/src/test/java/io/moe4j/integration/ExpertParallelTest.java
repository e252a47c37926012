package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.comm.CommException;
import io.moe4j.api.comm.Communicator;
import io.moe4j.api.config.Activation;
import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
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
import io.moe4j.reference.InProcessGroup;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Ranks as threads of one JVM, against one rank with all experts and all tokens. */
class ExpertParallelTest {
  private static final int E = 10;
  private static final int H = 24;
  private static final int I = 16;
  private static final int[] TOKENS = {5, 0, 11, 2};

  private final Random random = new Random(5);
  private final List<ExpertWeights.Expert> experts = new ArrayList<>();
  private final RouterWeights router = new RouterWeights(normal(E, H), null, null);
  private final SharedExpertWeights shared =
      new SharedExpertWeights(
          ExpertWeights.Expert.plain(normal(8, H), normal(8, H), normal(H, 8)), null);
  private final List<Map<LoraTarget, LoraFactors>> adapters = new ArrayList<>();

  ExpertParallelTest() {
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

  private Tensor normal(long... shape) {
    long n = Arrays.stream(shape).reduce(1, Math::multiplyExact);
    float[] values = new float[Math.toIntExact(n)];
    for (int i = 0; i < values.length; i++) {
      values[i] = (float) random.nextGaussian() * 0.3f;
    }
    return Tensor.ofFloats(values, shape);
  }

  private static MoeConfig.Builder config() {
    return MoeConfig.builder(H, I, E, 3)
        .weightDtype(DType.F32)
        .lora(new LoraConfig(2, 8))
        .sharedExpert(new SharedExpertConfig(8, Activation.SILU, false))
        .maxTokens(32);
  }

  private Tensor run(
      MoeConfig config, Communicator communicator, Tensor hidden, List<String> names) {
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

  private static List<String> names(int rank) {
    List<String> names = new ArrayList<>();
    for (int t = 0; t < TOKENS[rank]; t++) {
      names.add(new String[] {"", "a0", "a1"}[(t + rank) % 3]);
    }
    return names;
  }

  private static <T> List<T> together(List<Callable<T>> ranks) throws Exception {
    try (ExecutorService threads = Executors.newFixedThreadPool(ranks.size())) {
      List<Future<T>> started = ranks.stream().map(threads::submit).toList();
      List<T> results = new ArrayList<>();
      for (Future<T> f : started) {
        results.add(f.get());
      }
      return results;
    }
  }

  @ParameterizedTest
  @CsvSource({"2, STANDARD", "4, STANDARD", "2, BATCHED", "4, BATCHED"})
  void ranksGiveWhatOneRankGives(int ranks, ActivationFormat format) throws Exception {
    List<Tensor> hidden = new ArrayList<>();
    List<Callable<Tensor>> work = new ArrayList<>();
    List<Communicator> group = InProcessGroup.create(ranks, Duration.ofSeconds(60));
    for (int r = 0; r < ranks; r++) {
      hidden.add(normal(TOKENS[r], H));
    }
    for (int round = 0; round < 2; round++) {
      work.clear();
      for (int r = 0; r < ranks; r++) {
        int rank = r;
        MoeConfig config =
            config().activationFormat(format).parallel(ParallelConfig.expert(ranks, rank)).build();
        work.add(() -> run(config, group.get(rank), hidden.get(rank), names(rank)));
      }
      List<Tensor> first = together(work);
      for (int r = 0; r < ranks; r++) {
        double[] truth = run(config().build(), null, hidden.get(r), names(r)).toDoubles();
        double[] got = first.get(r).toDoubles();
        for (int i = 0; i < truth.length; i++) {
          assertThat(got[i]).isCloseTo(truth[i], org.assertj.core.data.Offset.offset(2e-5));
        }
      }
    }
  }

  @Test
  void anyPlacementOfExpertsGivesTheSameSum() throws Exception {
    int[] even = new int[E];
    int[] odd = new int[E];
    Arrays.setAll(even, e -> e % 2 == 0 ? e / 2 : -1);
    Arrays.setAll(odd, e -> e % 2 == 1 ? E / 2 - 1 - e / 2 : -1);
    List<ExpertMap> maps =
        List.of(ExpertMap.of(even).forRank(2, 0), ExpertMap.of(odd).forRank(2, 1));
    List<Communicator> group = InProcessGroup.create(2, Duration.ofSeconds(60));
    List<Tensor> hidden = List.of(normal(TOKENS[0], H), normal(TOKENS[1], H));
    List<Tensor> got =
        together(
            List.of(
                () ->
                    run(
                        config().expertMap(maps.get(0)).build(),
                        group.get(0),
                        hidden.get(0),
                        names(0)),
                () ->
                    run(
                        config().expertMap(maps.get(1)).build(),
                        group.get(1),
                        hidden.get(1),
                        names(1))));
    double[] truth = run(config().build(), null, hidden.get(0), names(0)).toDoubles();
    double[] result = got.getFirst().toDoubles();
    for (int i = 0; i < truth.length; i++) {
      assertThat(result[i]).isCloseTo(truth[i], org.assertj.core.data.Offset.offset(2e-5));
    }
  }

  @Test
  void aRankThatDoesNotComeIsNamed() {
    List<Communicator> group = InProcessGroup.create(2, Duration.ofMillis(200));
    MoeConfig config = config().parallel(ParallelConfig.expert(2, 0)).build();
    assertThatThrownBy(() -> run(config, group.getFirst(), normal(5, H), names(0)))
        .isInstanceOf(CommException.class)
        .hasMessageContaining("rank 1 of 2")
        .hasMessageContaining("did not come within");
  }

  @Test
  void aRankThatAbortsEndsTheOthersWithItsCause() {
    List<Communicator> group = InProcessGroup.create(2, Duration.ofSeconds(60));
    assertThatThrownBy(() ->
            together(
                List.<Callable<Tensor>>of(
                    () ->
                        run(
                            config().parallel(ParallelConfig.expert(2, 0)).build(),
                            group.getFirst(),
                            normal(5, H),
                            names(0)),
                    () -> {
                      group.get(1).abort(new IllegalStateException("no memory on rank 1"));
                      return normal(1);
                    })))
        .isInstanceOf(ExecutionException.class)
        .cause()
        .isInstanceOf(CommException.class)
        .hasMessageContaining("rank 1 of 2")
        .hasMessageContaining("no memory on rank 1");
  }

  @Test
  void ranksThatDisagreeWithTheConfigAreRefused() {
    List<Communicator> group = InProcessGroup.create(3, Duration.ofSeconds(1));
    MoeConfig config = config().parallel(ParallelConfig.expert(2, 1)).build();
    assertThatThrownBy(() -> run(config, group.get(1), normal(5, H), names(0)))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("communicator is rank 1 of 3, the config says ep 1/2");
  }

  @Test
  void theTableSaysHowRowsMove() {
    List<Communicator> group = InProcessGroup.create(2, Duration.ofSeconds(1));
    MoeConfig config =
        config()
            .activationFormat(ActivationFormat.BATCHED)
            .parallel(ParallelConfig.expert(2, 0))
            .build();
    MoeLayerWeights half =
        new MoeLayerWeights(new ExpertWeights(experts.subList(0, E / 2)), router, shared, null);
    try (MoeLayer layer = MoeLayer.builder(config, half).communicator(group.getFirst()).build()) {
      assertThat(layer.selection().explain())
          .contains("exchange: gather, ep 0/2 over in-process, BATCHED rows")
          .contains("local: a communicator of 2 ranks, moves nothing between ranks");
    }
  }

  @Test
  void moreTokensThanOnePieceAreRefusedBeforeAnybodyWaits() {
    List<Communicator> group = InProcessGroup.create(2, Duration.ofSeconds(60));
    MoeConfig config = config().parallel(ParallelConfig.expert(2, 0)).maxTokens(4).build();
    assertThatThrownBy(() -> run(config, group.getFirst(), normal(5, H), names(0)))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("hidden has 5 tokens, more than the 4 of one piece");
  }
}
