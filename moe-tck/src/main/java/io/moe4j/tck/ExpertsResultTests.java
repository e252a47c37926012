package io.moe4j.tck;

import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import java.util.List;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * Rules 2 and 3: results, and the memory that is read and written. A part of {@link
 * ExpertsConformanceTest}, which backends extend.
 */
abstract class ExpertsResultTests extends ExpertsAnswerTests {
  ExpertsResultTests() {}

  // ---- 2: results

  /**
   * Sizes, one by one, on every pair of dtypes.
   *
   * @param c the case
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.Grid#shapes")
  public final void required_MOE_2_1_shapes(Object c) {
    kit().assumeSupported(((Grid.Case) c).config());
    kit().verify("MOE-2.1", problem((Grid.Case) c));
  }

  /**
   * All dtypes of hidden states, weights and output.
   *
   * @param c the case
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.Grid#dtypes")
  public final void required_MOE_2_1_dtypes(Object c) {
    kit().verify("MOE-2.1", problem((Grid.Case) c));
  }

  /**
   * All activations, with their clamps.
   *
   * @param c the case
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.Grid#activationCases")
  public final void required_MOE_2_1_activations(Object c) {
    kit().verify("MOE-2.1", problem((Grid.Case) c));
  }

  /**
   * Stacked, interleaved, transposed, separate and unaligned weights.
   *
   * @param c the case
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.Grid#layouts")
  public final void required_MOE_2_1_layouts(Object c) {
    kit().verify("MOE-2.1", problem((Grid.Case) c));
  }

  /**
   * Weights in 4 bits.
   *
   * @param c the case
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.Grid#quantised")
  public final void required_MOE_2_1_quantised(Object c) {
    kit().verify("MOE-2.1", problem((Grid.Case) c));
  }

  /**
   * Bias, expert map, weight on input, together and alone.
   *
   * @param c the case
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.Grid#features")
  public final void required_MOE_2_1_features(Object c) {
    kit().verify("MOE-2.1", problem((Grid.Case) c));
  }

  /**
   * Tensors that begin at any element of somebody's buffer.
   *
   * @param dtypes element types of the tensors
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.Grid#dtypePairs")
  public final void required_MOE_2_1_tensorsAtAnyElement(Object dtypes) {
    MoeConfig config = Grid.layer((Grid.Dtypes) dtypes, 33, 17, 5, 3).build();
    kit().verify("MOE-2.1", problem(config, 9).shifted(4));
  }

  /**
   * Id -1 in some pairs, in all pairs of a token, in all pairs.
   *
   * @param dtypes element types of the tensors
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.Grid#dtypePairs")
  public final void required_MOE_2_2_pairsWithoutExpertContributeNothing(Object dtypes) {
    assumeStandard("batched experts see no ids");
    MoeConfig config = Grid.layer((Grid.Dtypes) dtypes).build();
    Problem some = problem(config, 7).id(0, 1, -1).id(2, 0, -1).id(3, 0, -1).id(3, 1, -1);
    kit().verify("MOE-2.2", some);
    Problem none = problem(config, 3);
    for (int t = 0; t < 3; t++) {
      none.id(t, 0, -1).id(t, 1, -1);
    }
    kit().verify("MOE-2.2", none);
  }

  /**
   * Ids that no expert has.
   *
   * @param dtypes element types of the tensors
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.Grid#dtypePairs")
  public final void required_MOE_2_2_unknownIdsContributeNothing(Object dtypes) {
    assumeStandard("batched experts see no ids");
    MoeConfig config = Grid.layer((Grid.Dtypes) dtypes).build();
    kit()
        .verify(
            "MOE-2.2",
            problem(config, 7)
                .id(0, 1, 8)
                .id(1, 0, Integer.MAX_VALUE)
                .id(2, 0, Integer.MIN_VALUE)
                .id(4, 0, 1000)
                .id(4, 1, -2));
    MoeConfig mapped =
        Grid.layer((Grid.Dtypes) dtypes).parallel(ParallelConfig.expert(2, 1)).build();
    if (kit().supports(mapped)) {
      kit()
          .verify(
              "MOE-2.2", problem(mapped, 7).id(0, 1, 8).id(1, 0, Integer.MAX_VALUE).id(2, 0, -7));
    }
  }

  /**
   * Experts of other ranks, tokens that are wholly elsewhere, local order unlike global order.
   *
   * @param dtypes element types of the tensors
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.Grid#dtypePairs")
  public final void required_MOE_2_2_expertsOfOtherRanksContributeNothing(Object dtypes) {
    for (ExpertMap map :
        List.of(
            ExpertMap.linear(8, 2, 0),
            ExpertMap.linear(8, 2, 1),
            ExpertMap.of(-1, -1, -1, -1, -1, 0, -1, -1).forRank(2, 0),
            ExpertMap.of(7, 6, 5, 4, 3, 2, 1, 0))) {
      kit().verify("MOE-2.2", problem(Grid.layer((Grid.Dtypes) dtypes).expertMap(map).build(), 29));
    }
  }

  /**
   * No tokens.
   *
   * @param dtypes element types of the tensors
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.Grid#dtypePairs")
  public final void required_MOE_2_3_zeroTokens(Object dtypes) {
    kit().verify("MOE-2.3", problem(Grid.layer((Grid.Dtypes) dtypes).build(), 0));
  }

  /**
   * Weights of zero, below zero, far from one.
   *
   * @param dtypes element types of the tensors
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.Grid#dtypePairs")
  public final void required_MOE_2_4_weightsAreAppliedOnce(Object dtypes) {
    assumeStandard("batched experts see no weights");
    for (boolean onInput : new boolean[] {false, true}) {
      MoeConfig config = Grid.layer((Grid.Dtypes) dtypes).routerWeightOnInput(onInput).build();
      if (onInput && !kit().supports(config)) {
        continue;
      }
      Problem p =
          problem(config, 6).weight(0, 0, 0).weight(1, 0, -1.5).weight(2, 1, 7).weight(3, 0, 1);
      kit().verify("MOE-2.4", p.weight(3, 1, 0).weight(4, 0, 0.01).weight(4, 1, 0.02));
    }
  }

  /**
   * A NaN in one token, infinities in another.
   *
   * @param dtypes element types of the tensors
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.Grid#dtypePairs")
  public final void required_MOE_2_5_faultsStayInTheirToken(Object dtypes) {
    Problem p = problem(Grid.layer((Grid.Dtypes) dtypes).build(), 40);
    p.hidden.set(Double.NaN, 3, 5);
    p.hidden.set(Double.POSITIVE_INFINITY, 17, 0);
    p.hidden.set(Double.NEGATIVE_INFINITY, 39, 47);
    kit().verify("MOE-2.5", p);
  }

  // ---- 3: memory

  /**
   * Guard bands around output and workspace, patterns that read as NaN around inputs.
   *
   * @param dtypes element types of the tensors
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.Grid#dtypePairs")
  public final void required_MOE_3_1_nothingOutsideOutputAndWorkspaceIsTouched(Object dtypes) {
    int[][] sizes = {{33, 17, 5, 3, 7}, {1, 1, 2, 1, 3}, {48, 40, 8, 2, 0}, {65, 9, 4, 2, 67}};
    for (int[] s : sizes) {
      MoeConfig config = Grid.layer((Grid.Dtypes) dtypes, s[0], s[1], s[2], s[3]).build();
      for (int shift : new int[] {0, 4}) {
        kit().verify("MOE-3.1", problem(config, s[4]).shifted(shift));
        kit().verify("MOE-3.1", problem(config, s[4]).shifted(shift).output(config.inputDtype()));
      }
    }
  }

  /**
   * Inputs, weights, factors and mapping hold the same bytes afterwards.
   *
   * @param dtypes element types of the tensors
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.Grid#dtypePairs")
  public final void required_MOE_3_2_inputsAreNotWritten(Object dtypes) {
    MoeConfig plain = Grid.layer((Grid.Dtypes) dtypes).build();
    kit().verify("MOE-3.2", problem(plain, 21));
    MoeConfig rich =
        plain.toBuilder()
            .expertBias(true)
            .parallel(ParallelConfig.expert(2, 1))
            .routerWeightOnInput(true)
            .lora(new LoraConfig(8, 256))
            .build();
    if (kit().supports(rich)) {
      kit().verify("MOE-3.2", mixed(rich, 21));
    }
  }
}
