package io.moe4j.tck;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.platform.engine.discovery.DiscoverySelectors.selectMethod;

import io.moe4j.api.spi.BlockOpsProvider;
import java.lang.reflect.Method;
import java.util.Arrays;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.platform.engine.TestExecutionResult;
import org.junit.platform.testkit.engine.EngineTestKit;

/** Each deliberately wrong block operation fails the test of the rule it breaks. */
class BlockKitCatchesMistakesTest {
  private static WrongBlockOps.@Nullable Maker subject;

  /** Run by the engine below, not by the build. */
  static final class Subject extends BlockOpsConformanceTest {
    @Override
    protected BlockOpsProvider blockOps() {
      if (subject == null) {
        return Assumptions.abort("a part of BlockKitCatchesMistakesTest");
      }
      return WrongBlockOps.provider(subject);
    }
  }

  static Stream<Arguments> mistakes() {
    return Stream.of(
        wrong("renormalisation forgotten", WrongBlockOps::renormalizeForgotten, "6_1_routing"),
        wrong("scaling forgotten", WrongBlockOps::scalingForgotten, "6_1_routing"),
        wrong("groups ignored", WrongBlockOps::groupsIgnored, "6_1_routing"),
        wrong("ties reversed", WrongBlockOps::tiesReversed, "6_1_tiesGoToTheSmallerId"),
        wrong("shared expert forgotten", WrongBlockOps::sharedForgotten, "6_2_finish"),
        wrong("shared gate forgotten", WrongBlockOps::sharedGateForgotten, "6_2_finish"),
        wrong("LoRA ignored", WrongBlockOps::loraIgnored, "6_2_finish"),
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
        wrong(
            "second close throws", WrongBlockOps::secondCloseThrows, "6_4_closeMayBeCalledTwice"));
  }

  @AfterEach
  void noSubject() {
    subject = null;
  }

  private static Arguments wrong(String name, WrongBlockOps.Maker maker, String test) {
    return Arguments.of(name, test, maker);
  }

  @ParameterizedTest(name = "{0}: {1}")
  @MethodSource("mistakes")
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
