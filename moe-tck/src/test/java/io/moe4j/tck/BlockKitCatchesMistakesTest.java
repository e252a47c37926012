package io.moe4j.tck;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.platform.engine.discovery.DiscoverySelectors.selectMethod;

import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.spi.BlockOpsProvider;
import io.moe4j.api.spi.Fact;
import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.platform.engine.TestExecutionResult;
import org.junit.platform.testkit.engine.EngineTestKit;

/** Each deliberately wrong block operation fails the test of the rule it breaks. */
class BlockKitCatchesMistakesTest {
  private static WrongBlockOps.@Nullable Maker subject;
  private static boolean leaking;

  /** Run by the engine below, not by the build. */
  static final class Subject extends BlockOpsConformanceTest {
    @Override
    protected BlockOpsProvider blockOps() {
      if (subject == null) {
        return Assumptions.abort("a part of BlockKitCatchesMistakesTest");
      }
      return leaking ? WrongBlockOps.leaks() : WrongBlockOps.provider(subject);
    }
  }

  static Stream<Arguments> mistakes() {
    return Stream.of(
        wrong("renormalisation forgotten", WrongBlockOps::renormalizeForgotten, "6_1_routing"),
        wrong("scaling forgotten", WrongBlockOps::scalingForgotten, "6_1_routing"),
        wrong("groups ignored", WrongBlockOps::groupsIgnored, "6_1_routing"),
        wrong("ties reversed", WrongBlockOps::tiesReversed, "6_1_tiesGoToTheSmallerId"),
        wrong("shared expert forgotten", WrongBlockOps::sharedForgotten, "6_2_output"),
        wrong("shared gate forgotten", WrongBlockOps::sharedGateForgotten, "6_2_output"),
        wrong("LoRA ignored", WrongBlockOps::loraIgnored, "6_2_output"),
        wrong("LoRA ignored", WrongBlockOps::loraIgnored, "6_2_latentIn"),
        wrong("output cleared first", WrongBlockOps::outputCleared, "6_2_outputMayBeRouted"),
        wrong("hidden written", WrongBlockOps::hiddenWritten, "6_2_routerLogits"),
        wrong("combine unweighted", WrongBlockOps::combineUnweighted, "6_3_dispatchAndCombine"),
        wrong(
            "dispatch forgets adapters",
            WrongBlockOps::dispatchForgetsAdapters,
            "6_3_dispatchAndCombine"),
        wrong(
            "scratch shared by threads",
            WrongBlockOps::scratchShared,
            "6_4_concurrentCallsDoNotDisturbEachOther"),
        wrong("-inf chosen", WrongBlockOps::minusInfinityChosen, "6_1_minusInfinityIsNotChosen"),
        wrong("router bias forgotten", WrongBlockOps::routerBiasForgotten, "6_2_routerLogits"),
        wrong("logits rounded", WrongBlockOps::logitsRounded, "6_2_routerLogits"),
        wrong("norms only multiply", WrongBlockOps::normsOnlyMultiply, "6_2_norms"),
        wrong("router's norm forgotten", WrongBlockOps::routerNormForgotten, "6_2_norms"),
        wrong("zero experts unweighted", WrongBlockOps::zeroExpertsUnweighted, "6_2_zeroExperts"),
        wrong("id -1 is expert 0", WrongBlockOps::minusOneIsExpertZero, "6_3_dispatchAndCombine"),
        wrong("zero tokens throw", WrongBlockOps::zeroTokensThrow, "6_4_zeroTokens"),
        wrong(
            "facts change",
            WrongBlockOps.saying(WrongBlockOps::changingFacts),
            "1_4_factsStayTheSame"),
        wrong(
            "a fact twice",
            WrongBlockOps.saying(
                () -> List.of(Fact.of("shared", "packed"), Fact.of("shared", "in place"))),
            "1_4_factsStayTheSame"),
        wrong(
            "facts throw",
            WrongBlockOps.saying(() -> {
              throw new IllegalStateException("not prepared");
            }),
            "1_4_factsStayTheSame"),
        wrong(
            "a fact named like the experts'",
            WrongBlockOps.saying(() -> List.of(Fact.of("weights", "packed"))),
            "1_4_factsStayTheSame"),
        wrong("writes past output", WrongBlockOps::writesPastOutput, "6_2_output"),
        wrong(
            "second close throws", WrongBlockOps::secondCloseThrows, "6_4_closeMayBeCalledTwice"));
  }

  static Stream<Arguments> ruleMistakes() {
    List<Arguments> all = new ArrayList<>();
    Map<String, String> elsewhere =
        Map.of("inputNorm", "6_2_routerLogits", "byTokenId", "6_1_byTokenId");
    WrongRules.fields()
        .forEach((field, maker) ->
            all.add(
                wrong(field + " ignored", maker, elsewhere.getOrDefault(field, "6_1_routing"))));
    WrongRules.scorings()
        .forEach((scoring, other) ->
            all.add(rule(scoring + " taken for " + other, WrongRules.taking(scoring, other))));
    all.add(rule("bias in weights", WrongRules.biasInWeights()));
    all.add(rule("a group's sum where the rule says maximum", WrongRules.groupSumForMax()));
    return all.stream();
  }

  private static Arguments rule(String name, WrongBlockOps.Maker maker) {
    return wrong(name, maker, "6_1_routing");
  }

  /** What is added to the rule later gets a mistake, or this fails. */
  @Test
  void everyPartOfARoutingRuleHasAMistake() {
    assertThat(WrongRules.scorings()).containsOnlyKeys(RoutingConfig.Scoring.values());
    assertThat(WrongRules.fields().keySet())
        .containsExactlyInAnyOrderElementsOf(
            Arrays.stream(RoutingConfig.class.getMethods())
                .filter(m -> m.getDeclaringClass() == RoutingConfig.class)
                .filter(m -> m.getParameterCount() == 0 && !Modifier.isStatic(m.getModifiers()))
                .map(Method::getName)
                .filter(n -> !List.of("toBuilder", "hashCode", "toString").contains(n))
                .toList());
  }

  @AfterEach
  void noSubject() {
    subject = null;
  }

  private static Arguments wrong(String name, WrongBlockOps.Maker maker, String test) {
    return Arguments.of(name, test, maker);
  }

  /** Memory that is not given back is counted where a device does the counting. */
  @Test
  void aLeakIsCaught() {
    leaking = true;
    try {
      isCaught("leak", "6_4_closeReleasesDeviceMemory", WrongBlockOps::new);
    } finally {
      leaking = false;
    }
  }

  @ParameterizedTest(name = "{0}: {1}")
  @MethodSource({"mistakes", "ruleMistakes"})
  void isCaught(String name, String test, WrongBlockOps.Maker maker) {
    subject = maker;
    Method method =
        Arrays.stream(BlockOpsConformanceTest.class.getMethods())
            .filter(m -> m.getName().endsWith(test))
            .findFirst()
            .orElseThrow();
    var failures =
        EngineTestKit.engine("junit-jupiter")
            .selectors(selectMethod(Subject.class, method))
            .execute()
            .testEvents()
            .failed()
            .stream()
            .map(e -> e.getRequiredPayload(TestExecutionResult.class).getThrowable().orElseThrow())
            .toList();
    assertThat(failures).as(name).isNotEmpty();
    assertThat(failures).allSatisfy(f -> assertThat(f).hasMessageContaining("MOE-"));
  }
}
