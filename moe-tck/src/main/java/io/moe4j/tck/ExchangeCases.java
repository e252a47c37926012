package io.moe4j.tck;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.ExpertPlacement;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.EnumMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.stream.IntStream;
import java.util.stream.Stream;

/** One layer over several ranks, and the tokens of each. */
final class ExchangeCases {
  private static final int E = 7;
  private static final int H = 24;
  private static final int I = 10;
  private static final int TOP_K = 3;

  /** Who owns which expert. */
  enum Placement {
    /** In blocks. */
    LINEAR,
    /** In turn. */
    ROUND_ROBIN,
    /** One expert each for all but the last rank, local order unlike global order. */
    LOPSIDED,
    /** In blocks, and each expert on the next rank as well. */
    REDUNDANT;

    private int owner(int expert, int ranks) {
      return switch (this) {
        case LINEAR, REDUNDANT -> Math.min(expert * ranks / E, ranks - 1);
        case ROUND_ROBIN -> expert % ranks;
        case LOPSIDED -> Math.min(expert, ranks - 1);
      };
    }

    ExpertMap map(int ranks, int rank) {
      int[] local = new int[E];
      Arrays.fill(local, -1);
      int next = 0;
      for (int n = 0; n < E; n++) {
        int expert = this == LOPSIDED ? E - 1 - n : n;
        int owner = owner(expert, ranks);
        if (owner == rank || (this == REDUNDANT && (owner + 1) % ranks == rank)) {
          local[expert] = next++;
        }
      }
      return ExpertMap.of(local).forRank(ranks, rank);
    }

    private ExpertPlacement all(int ranks) {
      return ExpertPlacement.of(IntStream.range(0, ranks).mapToObj(r -> map(ranks, r)).toList());
    }
  }

  /** What is done to ids and weights after they were routed. */
  interface Change {
    void to(Problem problem, int rank, int ranks);
  }

  /**
   * One run.
   *
   * @param name for the report
   * @param format of the experts
   * @param hidden dtype of hidden states
   * @param placement of the experts
   * @param tokens of each rank; as many ranks
   * @param onInput whether weights are applied on the input
   * @param lora whether tokens have adapters
   * @param change of the routing
   * @param replicated whether every rank has the tokens of the first
   */
  record ExchangeCase(
      String name,
      ActivationFormat format,
      DType hidden,
      Placement placement,
      List<Integer> tokens,
      boolean onInput,
      boolean lora,
      Change change,
      boolean replicated) {
    ExchangeCase(
        String name,
        ActivationFormat format,
        DType hidden,
        Placement placement,
        List<Integer> tokens,
        boolean onInput,
        boolean lora,
        Change change) {
      this(name, format, hidden, placement, tokens, onInput, lora, change, false);
    }

    /** {@return the same case with the tokens of the first rank on every rank} */
    ExchangeCase onEveryRank() {
      return new ExchangeCase(
          name,
          format,
          hidden,
          placement,
          Collections.nCopies(ranks(), tokens.getFirst()),
          onInput,
          lora,
          change,
          true);
    }

    int ranks() {
      return tokens.size();
    }

    int maxTokens() {
      return tokens.stream().mapToInt(Integer::intValue).max().orElse(0);
    }

    private MoeConfig.Builder layer() {
      MoeConfig.Builder b =
          Grid.layer(new Grid.Dtypes(hidden, DType.F32), H, I, E, TOP_K)
              .routerWeightOnInput(onInput)
              .activationFormat(format);
      return lora ? b.lora(new LoraConfig(4, 16)) : b;
    }

    /** {@return the layer as if one rank had all of it} */
    MoeConfig whole() {
      return layer().activationFormat(ActivationFormat.STANDARD).build();
    }

    /** {@return the layer as a rank has it} */
    MoeConfig config(int rank) {
      return ranks() == 1
          ? layer().build()
          : layer().parallel(parallel(rank)).placement(placement.all(ranks())).build();
    }

    private ParallelConfig parallel(int rank) {
      ParallelConfig own = ParallelConfig.expert(ranks(), rank);
      return replicated ? own.replicated() : own;
    }

    ExpertMap map(int rank) {
      return config(rank).expertMap().orElse(ExpertMap.linear(E, 1, 0));
    }

    /** {@return all experts} */
    ExpertWeights experts() {
      return Layout.STACKED.random(whole(), new Data(11));
    }

    /** {@return the experts of a rank, in its local order} */
    ExpertWeights experts(int rank) {
      ExpertMap map = map(rank);
      ExpertWeights all = experts();
      ExpertWeights.Expert[] mine = new ExpertWeights.Expert[map.numLocalExperts()];
      for (int e = 0; e < E; e++) {
        if (map.local(e) >= 0) {
          mine[map.local(e)] = all.expert(e);
        }
      }
      return new ExpertWeights(List.of(mine));
    }

    /** {@return the tokens of a rank, and the truth about them} */
    Problem problem(int of) {
      int rank = replicated ? 0 : of;
      Problem p = new Problem(whole(), experts(), tokens.get(rank), 31 + rank);
      if (lora) {
        int[][] slots = {{0, -1, 2}, {2, 0}, {-1}, {3, 2, -1, 0}};
        p.adapters(slots(), slots[rank % slots.length]);
      }
      change.to(p, rank, ranks());
      return p;
    }

    /** {@return four slots, the same on every rank, factors of all experts} */
    List<Optional<LoraLayer>> slots() {
      Data data = new Data(17);
      return List.of(
          Optional.of(Adapters.all(whole(), data, DType.F32, 3)),
          Optional.empty(),
          Optional.of(
              Adapters.routed(
                  whole(), data, DType.F32, Map.of(LoraTarget.UP, 5, LoraTarget.DOWN, 2))),
          Optional.of(Adapters.all(whole(), data, DType.F32, 16)));
    }

    /** {@return the same slots with the factors of a rank's experts} */
    List<Optional<LoraLayer>> slots(int rank) {
      ExpertMap map = map(rank);
      return slots().stream()
          .map(slot -> slot.map((LoraLayer layer) -> local(layer, map)))
          .toList();
    }

    private static LoraLayer local(LoraLayer layer, ExpertMap map) {
      var local = new EnumMap<LoraTarget, LoraFactors>(LoraTarget.class);
      layer
          .factors()
          .forEach((target, f) ->
              local.put(target, new LoraFactors(pick(f.a(), map), pick(f.b(), map))));
      return new LoraLayer(local);
    }

    private static Tensor pick(Tensor all, ExpertMap map) {
      Tensor some = Data.empty(all.dtype(), map.numLocalExperts(), all.size(1), all.size(2));
      for (int e = 0; e < E; e++) {
        if (map.local(e) >= 0) {
          some.select(0, map.local(e)).segment().copyFrom(all.select(0, e).segment());
        }
      }
      return some;
    }

    @Override
    public String toString() {
      return name
          + ", "
          + ranks()
          + " ranks, T="
          + tokens
          + " "
          + placement
          + " "
          + format
          + " hidden "
          + hidden
          + (lora ? " LoRA" : "")
          + (replicated ? ", the same on every rank" : "");
    }
  }

  private ExchangeCases() {}

  private static final Change NONE = (problem, rank, ranks) -> {};

  private static final List<List<Integer>> UNEVEN =
      List.of(List.of(9), List.of(5, 11), List.of(4, 0, 13), List.of(7, 1, 0, 12));

  /** {@return even tokens, nothing special} */
  static ExchangeCase plain(int ranks, ActivationFormat format) {
    List<Integer> tokens = Collections.nCopies(ranks, 3);
    return new ExchangeCase(
        "plain", format, DType.F32, Placement.LINEAR, tokens, false, false, NONE);
  }

  private static Stream<ActivationFormat> formats() {
    return Arrays.stream(ActivationFormat.values());
  }

  static Stream<ExchangeCase> placements() {
    return formats()
        .flatMap(format -> {
          List<ExchangeCase> cases = new ArrayList<>();
          for (List<Integer> tokens : UNEVEN) {
            for (Placement p : Placement.values()) {
              if (tokens.size() > 1 || p == Placement.LINEAR) {
                DType hidden = p == Placement.ROUND_ROBIN ? DType.BF16 : DType.F32;
                cases.add(
                    new ExchangeCase("uneven", format, hidden, p, tokens, false, false, NONE));
              }
            }
            List<Integer> none = Collections.nCopies(tokens.size(), 0);
            cases.add(
                new ExchangeCase(
                    "no tokens", format, DType.F32, Placement.LINEAR, none, false, false, NONE));
          }
          cases.add(
              new ExchangeCase(
                  "f16", format, DType.F16, Placement.LINEAR, List.of(3, 6), false, false, NONE));
          return cases.stream();
        });
  }

  private static void toExpertsOf(Problem p, int owner, int ranks, Placement placement) {
    ExpertMap map = placement.map(ranks, owner);
    List<Integer> theirs = new ArrayList<>();
    for (int e = 0; e < E; e++) {
      if (map.local(e) >= 0) {
        theirs.add(e);
      }
    }
    for (int t = 0; t < p.tokens; t++) {
      for (int k = 0; k < TOP_K; k++) {
        // ids of a token differ; where the rank has too few experts, the rest go nowhere
        p.id(t, k, k < theirs.size() ? theirs.get((t + k) % theirs.size()) : -1);
      }
    }
  }

  static Stream<ExchangeCase> routings() {
    return formats()
        .flatMap(format -> {
          List<ExchangeCase> cases = new ArrayList<>();
          for (List<Integer> tokens : UNEVEN) {
            for (Placement at : List.of(Placement.LINEAR, Placement.LOPSIDED)) {
              cases.add(
                  new ExchangeCase(
                      "all tokens on the experts of rank 0",
                      format,
                      DType.F32,
                      at,
                      tokens,
                      false,
                      true,
                      (p, rank, ranks) -> toExpertsOf(p, 0, ranks, at)));
            }
            cases.add(
                new ExchangeCase(
                    "all tokens on the experts of the last rank",
                    format,
                    DType.BF16,
                    Placement.LOPSIDED,
                    tokens,
                    false,
                    false,
                    (p, rank, ranks) -> toExpertsOf(p, ranks - 1, ranks, Placement.LOPSIDED)));
            cases.add(
                new ExchangeCase(
                    "ids that are no expert in some pairs, and in all pairs of a token",
                    format,
                    DType.F32,
                    Placement.ROUND_ROBIN,
                    tokens,
                    false,
                    true,
                    (p, rank, ranks) -> {
                      for (int t = 0; t < p.tokens; t++) {
                        p.id(t, t % TOP_K, t % 2 == 0 ? -1 : 77);
                        for (int k = 0; t % 3 == 1 && k < TOP_K; k++) {
                          p.id(t, k, -1);
                        }
                      }
                    }));
          }
          return cases.stream();
        });
  }

  static Stream<ExchangeCase> adapters() {
    return formats()
        .flatMap(format ->
            UNEVEN.stream()
                .map(tokens ->
                    new ExchangeCase(
                        "mixed adapters",
                        format,
                        DType.F32,
                        Placement.ROUND_ROBIN,
                        tokens,
                        false,
                        true,
                        NONE)));
  }

  static Stream<ExchangeCase> redundant() {
    return formats()
        .flatMap(format ->
            UNEVEN.stream()
                .filter(tokens -> tokens.size() > 1)
                .flatMap(tokens ->
                    Stream.of(
                        new ExchangeCase(
                            "experts on two ranks, and ids that are none",
                            format,
                            DType.F32,
                            Placement.REDUNDANT,
                            tokens,
                            false,
                            true,
                            (p, rank, ranks) -> {
                              for (int t = 0; t < p.tokens; t += 3) {
                                p.id(t, 1, E);
                              }
                            }),
                        new ExchangeCase(
                            "all tokens on experts that rank 0 has copies of",
                            format,
                            DType.BF16,
                            Placement.REDUNDANT,
                            tokens,
                            false,
                            false,
                            (p, rank, ranks) -> toExpertsOf(p, 0, ranks, Placement.REDUNDANT)))));
  }

  static Stream<ExchangeCase> weights() {
    Change odd =
        (p, rank, ranks) -> {
          for (int t = 0; t < p.tokens; t++) {
            p.weight(t, 0, new double[] {0, -1.5, 7, 1}[t % 4]).weight(t, 1, 0.02 * (t + 1));
          }
        };
    return formats()
        .flatMap(format ->
            UNEVEN.stream()
                .flatMap(tokens ->
                    Stream.of(false, true)
                        .map(onInput ->
                            new ExchangeCase(
                                onInput ? "weight on input" : "weight on output",
                                format,
                                DType.F32,
                                Placement.LINEAR,
                                tokens,
                                onInput,
                                onInput,
                                odd))));
  }

  /** {@return cases in which every rank has all tokens} */
  static Stream<ExchangeCase> replicated() {
    return Stream.concat(
        Stream.concat(routings(), redundant())
            .filter(c -> c.ranks() > 1)
            .map(ExchangeCase::onEveryRank),
        formats()
            .flatMap(format ->
                Stream.of(
                    plain(2, format).onEveryRank(),
                    new ExchangeCase(
                            "f16, weight on input",
                            format,
                            DType.F16,
                            Placement.LOPSIDED,
                            List.of(6, 6, 6),
                            true,
                            true,
                            NONE)
                        .onEveryRank(),
                    new ExchangeCase(
                            "no tokens",
                            format,
                            DType.F32,
                            Placement.LINEAR,
                            List.of(0, 0, 0),
                            false,
                            false,
                            NONE)
                        .onEveryRank())));
  }
}
