package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.comm.CommException;
import io.moe4j.api.comm.Communicator;
import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.oracle.MoeLayer;
import io.moe4j.reference.InProcessGroup;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
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
  private final RankedLayer model = new RankedLayer();

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
      hidden.add(model.normal(RankedLayer.TOKENS[r], RankedLayer.H));
    }
    for (int round = 0; round < 2; round++) {
      work.clear();
      for (int r = 0; r < ranks; r++) {
        int rank = r;
        MoeConfig config =
            RankedLayer.config()
                .activationFormat(format)
                .parallel(ParallelConfig.expert(ranks, rank))
                .build();
        work.add(
            () -> model.run(config, group.get(rank), hidden.get(rank), RankedLayer.names(rank)));
      }
      List<Tensor> first = together(work);
      for (int r = 0; r < ranks; r++) {
        double[] truth =
            model
                .run(RankedLayer.config().build(), null, hidden.get(r), RankedLayer.names(r))
                .toDoubles();
        double[] got = first.get(r).toDoubles();
        for (int i = 0; i < truth.length; i++) {
          assertThat(got[i]).isCloseTo(truth[i], org.assertj.core.data.Offset.offset(2e-5));
        }
      }
    }
  }

  @Test
  void anyPlacementOfExpertsGivesTheSameSum() throws Exception {
    int[] even = new int[RankedLayer.E];
    int[] odd = new int[RankedLayer.E];
    Arrays.setAll(even, e -> e % 2 == 0 ? e / 2 : -1);
    Arrays.setAll(odd, e -> e % 2 == 1 ? RankedLayer.E / 2 - 1 - e / 2 : -1);
    List<ExpertMap> maps =
        List.of(ExpertMap.of(even).forRank(2, 0), ExpertMap.of(odd).forRank(2, 1));
    List<Communicator> group = InProcessGroup.create(2, Duration.ofSeconds(60));
    List<Tensor> hidden =
        List.of(
            model.normal(RankedLayer.TOKENS[0], RankedLayer.H),
            model.normal(RankedLayer.TOKENS[1], RankedLayer.H));
    List<Tensor> got =
        together(
            List.of(
                () ->
                    model.run(
                        RankedLayer.config().expertMap(maps.get(0)).build(),
                        group.get(0),
                        hidden.get(0),
                        RankedLayer.names(0)),
                () ->
                    model.run(
                        RankedLayer.config().expertMap(maps.get(1)).build(),
                        group.get(1),
                        hidden.get(1),
                        RankedLayer.names(1))));
    double[] truth =
        model
            .run(RankedLayer.config().build(), null, hidden.get(0), RankedLayer.names(0))
            .toDoubles();
    double[] result = got.getFirst().toDoubles();
    for (int i = 0; i < truth.length; i++) {
      assertThat(result[i]).isCloseTo(truth[i], org.assertj.core.data.Offset.offset(2e-5));
    }
  }

  @Test
  void aRankThatDoesNotComeIsNamed() {
    List<Communicator> group = InProcessGroup.create(2, Duration.ofMillis(200));
    MoeConfig config = RankedLayer.config().parallel(ParallelConfig.expert(2, 0)).build();
    assertThatThrownBy(() ->
            model.run(
                config, group.getFirst(), model.normal(5, RankedLayer.H), RankedLayer.names(0)))
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
                        model.run(
                            RankedLayer.config().parallel(ParallelConfig.expert(2, 0)).build(),
                            group.getFirst(),
                            model.normal(5, RankedLayer.H),
                            RankedLayer.names(0)),
                    () -> {
                      group.get(1).abort(new IllegalStateException("no memory on rank 1"));
                      return model.normal(1);
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
    MoeConfig config = RankedLayer.config().parallel(ParallelConfig.expert(2, 1)).build();
    assertThatThrownBy(() ->
            model.run(config, group.get(1), model.normal(5, RankedLayer.H), RankedLayer.names(0)))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("communicator is rank 1 of 3, the config says ep 1/2");
  }

  @Test
  void theTableSaysHowRowsMove() {
    List<Communicator> group = InProcessGroup.create(2, Duration.ofSeconds(1));
    MoeConfig config =
        RankedLayer.config()
            .activationFormat(ActivationFormat.BATCHED)
            .parallel(ParallelConfig.expert(2, 0))
            .build();
    MoeLayerWeights half =
        new MoeLayerWeights(
            new ExpertWeights(model.experts.subList(0, RankedLayer.E / 2)),
            model.router,
            model.shared,
            null);
    try (MoeLayer layer = MoeLayer.builder(config, half).communicator(group.getFirst()).build()) {
      assertThat(layer.selection().explain())
          .contains(
              "exchange: alltoall, ep 0/2 over in-process, BATCHED rows; top_k 3 reaches 88% of 2"
                  + " ranks")
          .contains("local: a communicator of 2 ranks, moves nothing between ranks");
    }
  }

  @Test
  void moreTokensThanOnePieceAreRefusedBeforeAnybodyWaits() {
    List<Communicator> group = InProcessGroup.create(2, Duration.ofSeconds(60));
    MoeConfig config =
        RankedLayer.config().parallel(ParallelConfig.expert(2, 0)).maxTokens(4).build();
    assertThatThrownBy(() ->
            model.run(
                config, group.getFirst(), model.normal(5, RankedLayer.H), RankedLayer.names(0)))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("hidden has 5 tokens, more than the 4 of one piece");
  }
}
