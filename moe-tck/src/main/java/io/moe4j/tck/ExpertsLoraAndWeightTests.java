package io.moe4j.tck;

import static org.junit.jupiter.api.Assertions.assertEquals;

import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.spi.Experts;
import io.moe4j.api.spi.LoraExperts;
import io.moe4j.api.tensor.DType;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * Rules 4, 7 and 8: adapters, quantised weights, experts that route by themselves. A part of {@link
 * ExpertsConformanceTest}, which backends extend.
 */
abstract class ExpertsLoraAndWeightTests extends ExpertsResultTests {
  ExpertsLoraAndWeightTests() {}

  // ---- 4: LoRA

  /** {@code supportsLora()} and the class of what is prepared. */
  @Test
  public final void required_MOE_4_1_supportsLoraAndExpertsAgree() {
    List<MoeConfig> configs = new ArrayList<>();
    for (Grid.Dtypes d : Grid.DTYPES) {
      configs.add(Grid.layer(d).build());
      configs.add(Grid.layer(d).lora(new LoraConfig(4, 16)).build());
    }
    for (MoeConfig config : configs) {
      if (kit().supports(config)) {
        try (Experts experts = kit().prepare(problem(config, 1))) {
          assertEquals(
              kit().backend.supportsLora(),
              experts instanceof LoraExperts,
              () ->
                  "MOE-4.1: supportsLora() and \"prepare(...) instanceof LoraExperts\" disagree for "
                      + Problem.describe(config)
                      + (config.lora().isPresent() ? " with LoRA" : ""));
        }
      }
    }
  }

  /**
   * Ranks, projections, layouts of factors, mixtures.
   *
   * @param c the case
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.LoraCases#cases")
  public final void required_MOE_4_2_deltas(Object c) {
    var lora = (LoraCases.LoraCase) c;
    kit().assumeSupported(lora.config());
    kit().verify("MOE-4.2", lora.problem(kit().own(lora.config()), 5));
  }

  /**
   * Tokens without adapter, alone and between others.
   *
   * @param dtypes element types of the tensors
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.Grid#dtypePairs")
  public final void required_MOE_4_3_tokensWithoutAdapterGetTheBaseResult(Object dtypes) {
    MoeConfig config = Grid.layer((Grid.Dtypes) dtypes).lora(new LoraConfig(8, 256)).build();
    kit().assumeSupported(config);
    Problem none = mixed(config, 13);
    java.util.Arrays.fill(none.mapping, -1);
    kit().verify("MOE-4.3", none);
    Problem emptySlot = mixed(config, 13);
    java.util.Arrays.fill(emptySlot.mapping, 1);
    kit().verify("MOE-4.3", emptySlot);
    Problem but = mixed(config, 13);
    java.util.Arrays.fill(but.mapping, -1);
    but.mapping[6] = 2;
    kit().verify("MOE-4.3", but);
  }

  // ---- 7: quantised weights

  private void verifyQuantised(String rule, Object c) {
    var quantised = (QuantCases.QuantCase) c;
    kit().assumeSupported(quantised.config());
    kit().verify(rule, quantised.problem(kit().own(quantised.config())));
  }

  /**
   * Each scheme in each packing.
   *
   * @param c the case
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.QuantCases#uniform")
  public final void required_MOE_7_1_quantisedWeights(Object c) {
    verifyQuantised("MOE-7.1", c);
  }

  /**
   * Layers whose projections and experts differ in scheme.
   *
   * @param c the case
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.QuantCases#mixed")
  public final void required_MOE_7_2_mixedSchemes(Object c) {
    verifyQuantised("MOE-7.2", c);
  }

  /**
   * Adapters on quantised experts.
   *
   * @param c the case
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.QuantCases#lora")
  public final void required_MOE_7_3_deltasOnQuantisedWeights(Object c) {
    verifyQuantised("MOE-7.3", c);
  }

  // ---- 8: experts that route by themselves

  private void assumeMonolithic() {
    if (!kit().isMonolithic(Grid.computed())) {
      kit().unsupported("ROUTING", "only monolithic experts route themselves");
    }
  }

  private void verifyRouting(Grid.Dtypes dtypes, DType logits) {
    assumeMonolithic();
    int verified = 0;
    for (BlockCases.Route route : BlockCases.routes().toList()) {
      RoutingConfig r = route.routing();
      if (route.experts() > 64 || r.byTokenId() || r.expertScale() || r.sumFloor() > 0) {
        // The block's own tests have those. Here every expert has weights, and what comes from
        // tables of the router does not reach experts that route by themselves.
        continue;
      }
      MoeConfig config =
          kit()
              .own(
                  Grid.layer(dtypes, 16, 8, route.experts(), route.topK())
                      .routing(route.routing())
                      .build());
      if (!kit().supports(config)) {
        continue;
      }
      Data data = new Data(route.hashCode());
      int tokens = Math.min(route.tokens(), 7);
      Problem p = new Problem(config, Layout.STACKED.random(config, data), tokens, 5);
      double[] bias = p.correctionBias == null ? null : p.correctionBias.toDoubles();
      double[][] z = new double[tokens][];
      for (int t = 0; t < tokens; t++) {
        z[t] = route.logits(data, bias, logits);
      }
      kit().verify("MOE-8.1", p.logits(logits, z), BlockCases.tolerance(config.numExperts()));
      verified++;
    }
    if (verified == 0) {
      kit().unsupported("ROUTING", "no routing rule with " + dtypes);
    }
  }

  /**
   * Every routing rule, ids and weights, from logits in f32.
   *
   * @param dtypes element types of the tensors
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.Grid#dtypePairs")
  public final void required_MOE_8_1_monolithicRouting(Object dtypes) {
    verifyRouting((Grid.Dtypes) dtypes, DType.F32);
  }

  /**
   * The same from logits in bf16.
   *
   * @param dtypes element types of the tensors
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.Grid#dtypePairs")
  public final void required_MOE_8_1_monolithicRoutingFromBf16Logits(Object dtypes) {
    verifyRouting((Grid.Dtypes) dtypes, DType.BF16);
  }
}
