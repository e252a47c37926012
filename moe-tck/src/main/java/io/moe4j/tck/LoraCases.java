package io.moe4j.tck;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.DType;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.function.UnaryOperator;
import java.util.stream.Stream;

/** Batches with adapters. */
final class LoraCases {
  /** What is loaded into the slots. */
  interface Load {
    /**
     * {@return one entry a slot}
     *
     * @param config the layer
     * @param data random factors
     * @param dtype of the factors
     */
    List<Optional<LoraLayer>> slots(MoeConfig config, Data data, DType dtype);
  }

  /**
   * One run.
   *
   * @param name for the report
   * @param config with LoRA on
   * @param layout of the weights
   * @param tokens {@code T}
   * @param load the adapters
   * @param slotOf slot of token {@code t % length}
   * @param dtype of the factors
   */
  record LoraCase(
      String name,
      MoeConfig config,
      Layout layout,
      int tokens,
      Load load,
      List<Integer> slotOf,
      DType dtype) {
    @Override
    public String toString() {
      return name + ", " + Problem.describe(config);
    }

    Problem problem(MoeConfig own, long seed) {
      Data data = new Data(seed);
      return new Problem(own, layout.random(own, data), tokens, seed)
          .adapters(
              load.slots(own, data, dtype), slotOf.stream().mapToInt(Integer::intValue).toArray());
    }
  }

  private static final LoraConfig LORA = new LoraConfig(8, 256);

  private LoraCases() {}

  private static MoeConfig.Builder layer(Grid.Dtypes dtypes) {
    return Grid.layer(dtypes, 48, 40, 5, 2).lora(LORA);
  }

  private static Load one(Load1 load) {
    return (config, data, dtype) -> List.of(Optional.of(load.layer(config, data, dtype)));
  }

  private interface Load1 {
    LoraLayer layer(MoeConfig config, Data data, DType dtype);
  }

  private static Load only(Map<LoraTarget, Integer> ranks) {
    return one((config, data, dtype) -> Adapters.routed(config, data, dtype, ranks));
  }

  /** Eight slots, two of them empty, adapters of all kinds and ranks. */
  static final Load MIXED =
      (config, data, dtype) ->
          List.of(
              Optional.of(Adapters.all(config, data, dtype, 8)),
              Optional.empty(),
              Optional.of(
                  Adapters.routed(
                      config,
                      data,
                      dtype,
                      Map.of(LoraTarget.GATE, 3, LoraTarget.UP, 17, LoraTarget.DOWN, 33))),
              Optional.of(Adapters.fused(config, data, dtype, 5)),
              Optional.of(Adapters.sharedAcrossExperts(config, data, dtype, 16)),
              Optional.of(Adapters.strided(config, data, dtype, 4)),
              Optional.of(Adapters.routed(config, data, dtype, Map.of(LoraTarget.DOWN, 64))),
              Optional.of(LoraLayer.NONE));

  private static final List<Integer> ALL = List.of(0);
  private static final List<Integer> MIX = List.of(3, -1, 0, 2, 2, 5, -1, 4, 6, 1, 7);

  static Stream<LoraCase> cases() {
    List<LoraCase> cases = new ArrayList<>();
    for (Grid.Dtypes d : Grid.DTYPES) {
      Adder add = new Adder(cases, d);
      for (int rank : new int[] {1, 2, 3, 7, 8, 16, 17, 32, 64, 100, 128, 256}) {
        add.with("rank " + rank, b -> b, 9, one((c, x, t) -> Adapters.all(c, x, t, rank)), ALL);
      }
      add.with("gate only", b -> b, 9, only(Map.of(LoraTarget.GATE, 6)), ALL);
      add.with("up only", b -> b, 9, only(Map.of(LoraTarget.UP, 6)), ALL);
      add.with("down only", b -> b, 9, only(Map.of(LoraTarget.DOWN, 6)), ALL);
      add.with(
          "a rank for each projection",
          b -> b,
          9,
          only(Map.of(LoraTarget.GATE, 4, LoraTarget.UP, 19, LoraTarget.DOWN, 11)),
          ALL);
      add.with("shared A", b -> b, 9, one((c, x, t) -> Adapters.fused(c, x, t, 8)), ALL);
      add.with(
          "expert dimension 1",
          b -> b,
          9,
          one((c, x, t) -> Adapters.sharedAcrossExperts(c, x, t, 8)),
          ALL);
      add.with("strided", b -> b, 9, one((c, x, t) -> Adapters.strided(c, x, t, 8)), ALL);
      add.with("mixed, one token", b -> b, 1, MIXED, List.of(2));
      add.with("mixed", b -> b, 44, MIXED, MIX);
      add.with("mixed, many tokens", b -> b, 150, MIXED, MIX);
      add.with("mixed, bias", b -> b.expertBias(true), 23, MIXED, MIX);
      add.with("mixed, no gate", b -> b.activation(Activation.RELU2_NO_MUL), 23, MIXED, MIX);
      add.with(
          "mixed, gpt-oss like",
          b -> b.activation(Activation.SWIGLUOAI).expertBias(true),
          23,
          MIXED,
          MIX);
      add.with("mixed, weight on input", b -> b.routerWeightOnInput(true), 23, MIXED, MIX);
      add.with(
          "mixed, expert map",
          b -> b.parallel(ParallelConfig.expert(2, 0)).expertMap(ExpertMap.of(-1, 1, -1, 0, 2)),
          23,
          MIXED,
          MIX);
      if (d.weights() == DType.BF16) {
        cases.add(
            new LoraCase(
                "mixed, mxfp4",
                Grid.layer(new Grid.Dtypes(d.hidden(), DType.BF16), 64, 96, 5, 2)
                    .quantScheme(QuantScheme.MXFP4)
                    .lora(LORA)
                    .build(),
                Layout.INTERLEAVED,
                23,
                MIXED,
                MIX,
                d.weights()));
      }
      cases.add(
          new LoraCase(
              "mixed, odd sizes",
              Grid.layer(d, 33, 17, 5, 3).lora(LORA).build(),
              Layout.INTERLEAVED,
              13,
              MIXED,
              MIX,
              d.weights()));
      for (DType factors : List.of(DType.F32, DType.BF16, DType.F16)) {
        cases.add(
            new LoraCase(
                "mixed, factors " + factors,
                layer(d).build(),
                Layout.STACKED,
                13,
                MIXED,
                MIX,
                factors));
      }
    }
    return cases.stream();
  }

  /** Cases of one pair of dtypes. */
  private record Adder(List<LoraCase> cases, Grid.Dtypes dtypes) {
    void with(
        String name,
        UnaryOperator<MoeConfig.Builder> change,
        int tokens,
        Load load,
        List<Integer> slotOf) {
      cases.add(
          new LoraCase(
              name,
              change.apply(layer(dtypes)).build(),
              Layout.STACKED,
              tokens,
              load,
              slotOf,
              dtypes.weights()));
    }
  }
}
