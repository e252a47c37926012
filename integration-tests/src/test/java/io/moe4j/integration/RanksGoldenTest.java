package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.comm.Communicator;
import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.checkpoint.TensorParallel;
import io.moe4j.lora.AdapterBatch;
import io.moe4j.lora.AdapterRegistry;
import io.moe4j.oracle.MoeForward;
import io.moe4j.oracle.MoeLayer;
import io.moe4j.reference.InProcessGroup;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/**
 * What transformers and PEFT computed, by ranks that share a layer: each brings every n-th token,
 * or all bring all of them, adapters mixed. Expert parallel, tensor parallel and both; plain and
 * quantised.
 */
class RanksGoldenTest {
  /** One rank's tokens through one exchange, twice. */
  private static float[] run(
      Fixture fixture,
      int index,
      ParallelConfig rank,
      @Nullable String exchange,
      Communicator group)
      throws Exception {
    MoeConfig config = TensorParallel.config(fixture.config(index), rank);
    ExpertMap map = ExpertMap.linear(config.numExperts(), rank.epSize(), rank.epRank());
    MoeLayerWeights weights =
        TensorParallel.of(rank).weights(fixture.checkpoint.weights(index, map));
    Tensor all = fixture.io.tensor("layers." + index + ".input");
    List<String> adapters = fixture.order.subList(1, fixture.order.size());
    List<@Nullable String> names = new ArrayList<>(adapters);
    List<Float> hidden = new ArrayList<>();
    int count = 0;
    for (int t = first(rank); t < all.size(0); t += step(rank)) {
      names.add(name(fixture, t));
      for (float v : all.select(0, t).toFloats()) {
        hidden.add(v);
      }
      count++;
    }
    float[] values = new float[hidden.size()];
    for (int i = 0; i < values.length; i++) {
      values[i] = hidden.get(i);
    }
    Tensor in = Tensor.ofFloats(values, count, config.hiddenSize());
    Tensor out = Tensor.ofFloats(new float[values.length], count, config.hiddenSize());
    try (AdapterRegistry registry = fixture.registryOf(rank);
        MoeLayer layer =
            MoeLayer.builder(config, weights)
                .backend("cpu")
                .communicator(group)
                .exchange(exchange)
                .build();
        // All adapters in every batch, in one order: slots agree between ranks.
        AdapterBatch batch = registry.batch(names)) {
      if (exchange == null && rank.replicatedTokens()) {
        assertThat(layer.selection().explain()).contains("exchange: allreduce");
      }
      var context = batch.context(index);
      MoeForward request =
          MoeForward.of(in, out)
              .withLora(
                  context.withTokenLoraMapping(
                      context.tokenLoraMapping().narrow(0, adapters.size(), count)));
      layer.forward(request);
      float[] first = out.toFloats();
      layer.forward(request);
      assertThat(out.toFloats()).as("the same bits").isEqualTo(first);
      return first;
    }
  }

  private static int first(ParallelConfig rank) {
    return rank.replicatedTokens() ? 0 : rank.rank();
  }

  private static int step(ParallelConfig rank) {
    return rank.replicatedTokens() ? 1 : rank.worldSize();
  }

  private static @Nullable String name(Fixture fixture, int token) {
    String name = fixture.order.get(token % fixture.order.size());
    return name.equals("base") ? null : name;
  }

  private static List<float[]> check(
      String model, int ep, int tp, boolean replicated, @Nullable String exchange)
      throws Exception {
    try (Fixture fixture = Fixture.open(model)) {
      int index = fixture.checkpoint.layers().getFirst();
      int size = ep * tp;
      List<float[]> all = new ArrayList<>();
      List<ParallelConfig> layout = new ArrayList<>();
      List<Communicator> group = InProcessGroup.create(size, Duration.ofSeconds(60));
      List<Future<float[]>> ranks = new ArrayList<>();
      try (ExecutorService threads = Executors.newFixedThreadPool(size)) {
        for (int r = 0; r < size; r++) {
          Communicator mine = group.get(r);
          ParallelConfig rank = new ParallelConfig(tp, r % tp, ep, r / tp, replicated);
          layout.add(rank);
          ranks.add(
              threads.submit(() -> {
                try {
                  return run(fixture, index, rank, exchange, mine);
                } catch (Throwable e) {
                  mine.abort(e);
                  throw e;
                }
              }));
        }
      }
      LayerCheck check = LayerCheck.exact(fixture, index, layout.getFirst() + ", " + exchange);
      for (int r = 0; r < size; r++) {
        float[] got = ranks.get(r).get();
        all.add(got);
        int width = fixture.config(index).hiddenSize();
        double[] wide = new double[got.length];
        double[] golden = new double[got.length];
        for (int n = 0; n * width < got.length; n++) {
          int token = first(layout.get(r)) + n * step(layout.get(r));
          String name = name(fixture, token);
          double[] row =
              check.golden("output." + (name == null ? "base" : name)).select(0, token).toDoubles();
          for (int h = 0; h < width; h++) {
            wide[n * width + h] = got[n * width + h];
            golden[n * width + h] = row[h];
          }
        }
        check.close("tokens of rank " + r, wide, golden);
      }
      return all;
    }
  }

  @ParameterizedTest
  @CsvSource({
    "fixtures/qwen3_moe, 2, 1, gather",
    "fixtures/qwen3_moe, 2, 1, alltoall",
    "fixtures/qwen3_moe, 4, 1, ",
    "fixtures/qwen3_moe, 1, 2, ",
    "fixtures/qwen3_moe, 2, 2, gather",
    "fixtures/qwen3_moe, 2, 2, alltoall",
    "fixtures/mixtral, 4, 1, alltoall",
    "fixtures/mixtral, 1, 4, ",
    "fixtures/deepseek_v3, 4, 1, ",
    "fixtures/deepseek_v3, 2, 2, ",
    "fixtures/gpt_oss, 2, 1, ",
    "fixtures/gpt_oss, 1, 2, ",
    "families/nemotron_h_latent, 1, 2, ",
    "quantised/ct_w4a16_asym_g32, 2, 1, alltoall",
    "quantised/ct_w4a16_asym_g32, 1, 2, ",
    "quantised/ct_w8a16_g32, 2, 2, ",
    "quantised/ct_fp8_channel_dynamic, 1, 2, ",
    "quantised/ct_w4a16_channel, 2, 2, alltoall",
    "quantised/ct_mxfp4, 1, 2, ",
    "quantised/nvfp4_ct, 1, 2, ",
  })
  void ranksGiveTheRecordedOutputs(String model, int ep, int tp, @Nullable String exchange)
      throws Exception {
    check(model, ep, tp, false, exchange);
  }

  /** All ranks bring all tokens: the recorded results on each, with the same bits. */
  @ParameterizedTest
  @CsvSource({
    "fixtures/qwen3_moe, 2, 1",
    "fixtures/qwen3_moe, 1, 2",
    "fixtures/qwen3_moe, 2, 2",
    "fixtures/mixtral, 4, 1",
    "fixtures/mixtral, 1, 4",
    "fixtures/deepseek_v3, 4, 1",
    "fixtures/deepseek_v3, 2, 2",
    "fixtures/gpt_oss, 2, 1",
    "fixtures/gpt_oss, 1, 2",
    "families/nemotron_h_latent, 1, 2",
    "families/longcat_flash, 2, 1",
    "families/longcat_flash, 1, 2",
    "quantised/ct_w4a16_asym_g32, 2, 1",
    "quantised/ct_w4a16_asym_g32, 1, 2",
    "quantised/ct_w8a16_g32, 2, 2",
    "quantised/ct_fp8_channel_dynamic, 1, 2",
    "quantised/ct_mxfp4, 2, 1",
    "quantised/nvfp4_ct, 1, 2",
  })
  void ranksThatHaveAllTokensGiveTheRecordedOutputs(String model, int ep, int tp) throws Exception {
    List<float[]> ranks = check(model, ep, tp, true, null);
    for (int r = 1; r < ranks.size(); r++) {
      assertThat(ranks.get(r)).as("rank %d", r).isEqualTo(ranks.getFirst());
    }
  }

  /** Shares that would cut through what has one scale. */
  @ParameterizedTest
  @CsvSource({
    "quantised/fp8_block128, 2, cut through",
    "quantised/gptq4_asym_desc_g32, 2, act-order",
    "quantised/gptq4_sym_g128, 2, cut through",
    "quantised/gptq8_sym_g64, 2, cut through groups of 64",
    "fixtures/qwen3_moe, 5, does not divide by tpSize 5",
  })
  void sharesThatCutThroughAGroupAreRefused(String model, int tp, String why) {
    try (Fixture fixture = Fixture.open(model)) {
      int index = fixture.checkpoint.layers().getFirst();
      MoeLayerWeights whole = fixture.checkpoint.weights(index);
      assertThatThrownBy(() -> TensorParallel.of(ParallelConfig.tensor(tp, 0)).weights(whole))
          .isInstanceOf(IllegalArgumentException.class)
          .hasMessageContaining(why);
    }
  }
}
