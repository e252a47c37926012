package io.moe4j.tck;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.platform.engine.discovery.DiscoverySelectors.selectMethod;

import io.moe4j.api.comm.Communicator;
import io.moe4j.api.spi.ExpertExchangeProvider;
import java.lang.reflect.Method;
import java.time.Duration;
import java.util.Arrays;
import java.util.List;
import java.util.function.UnaryOperator;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.platform.engine.TestExecutionResult;
import org.junit.platform.testkit.engine.EngineTestKit;

/** Each deliberately wrong communicator and exchange fails the test of the rule it breaks. */
class RankKitsCatchMistakesTest {
  private static @Nullable UnaryOperator<Communicator> communicators;
  private static TestExchange.@Nullable Maker exchanges;

  /** Run by the engine below, not by the build. */
  static final class WrongGroup extends CommunicatorConformanceTest {
    @Override
    protected List<KitRank> openGroup(int size, Duration deadline) {
      UnaryOperator<Communicator> wrong = communicators;
      if (wrong == null) {
        return Assumptions.abort("a part of RankKitsCatchMistakesTest");
      }
      return Ranks.inProcess(size, deadline).stream()
          .map(r -> new KitRank(wrong.apply(r.communicator()), r.device()))
          .toList();
    }

    @Override
    protected List<Integer> sizes() {
      return List.of(1, 3);
    }
  }

  /** Run by the engine below, not by the build. */
  static final class WrongExchange extends ExchangeConformanceTest {
    @Override
    protected ExpertExchangeProvider provider() {
      TestExchange.Maker wrong = exchanges;
      if (wrong == null) {
        return Assumptions.abort("a part of RankKitsCatchMistakesTest");
      }
      return TestExchange.provider(wrong);
    }

    @Override
    protected List<Integer> sizes() {
      return List.of(3);
    }
  }

  static Stream<Arguments> communicatorMistakes() {
    return Stream.of(
        wrong("rows in reverse", WrongCommunicator::gathersInReverse, "9_1_allGather"),
        wrong("what is sent is written", WrongCommunicator::writesWhatIsSent, "9_1_allGather"),
        wrong("rows one place off", WrongCommunicator::packsReceivedRowsEvenly, "9_1_allToAll"),
        wrong("a rank missing", WrongCommunicator::sumsWithoutLastRank, "9_2_reduceScatter"),
        wrong("a rank missing", WrongCommunicator::sumsWithoutLastRank, "9_2_allReduce"),
        wrong("ring order", WrongCommunicator::sumsInRingOrder, "9_2_reduceScatter"),
        wrong("ring order", WrongCommunicator::sumsInRingOrder, "9_2_allReduce"),
        wrong("rounded in between", WrongCommunicator::roundsInBetween, "9_2_allReduce"),
        wrong(
            "blames itself",
            WrongCommunicator::blamesItself,
            "9_3_aMissingRankIsNamedAfterTheDeadline"),
        wrong(
            "another exception",
            WrongCommunicator::throwsSomethingElse,
            "9_3_abortEndsTheGroupWithItsCause"),
        wrong(
            "failures swallowed",
            WrongCommunicator::swallowsFailures,
            "9_3_ranksThatDisagreeEndTheGroup"),
        wrong(
            "second close throws",
            WrongCommunicator::secondCloseThrows,
            "9_4_closeMayBeCalledTwice"));
  }

  static Stream<Arguments> exchangeMistakes() {
    return Stream.of(
        exchange(
            "rows in reverse",
            TestExchange::rowsInReverse,
            "10_2_everyTokenGetsTheSumOfItsExperts"),
        exchange("a rank missing from the sum", TestExchange::sumMissesARank, "10_2_anyRouting"),
        exchange(
            "padding is expert 0",
            TestExchange::paddingIsExpertZero,
            "10_2_everyTokenGetsTheSumOfItsExperts"),
        exchange("every copy adds", TestExchange::everyCopyAdds, "10_8_oneCopyOfAnExpertIsUsed"),
        exchange(
            "ranks round otherwise", TestExchange::ranksDiffer, "10_9_ranksMayHaveTheSameTokens"),
        exchange("slots stay", TestExchange::slotsStay, "10_3_adapterSlotsTravelWithTheRows"),
        exchange("weights twice", TestExchange::weightsTwice, "10_4_weightsAreAppliedOnce"),
        exchange("last bit varies", TestExchange::lastBitVaries, "10_5_equalCallsGiveEqualBits"),
        exchange("failure hidden", TestExchange::failureHidden, "10_6_aRankThatAbortsEndsTheCall"),
        exchange(
            "second close throws", TestExchange::secondCloseThrows, "10_7_closeMayBeCalledTwice"));
  }

  private static Arguments wrong(String name, UnaryOperator<Communicator> wrong, String test) {
    return Arguments.of(name, test, wrong);
  }

  private static Arguments exchange(String name, TestExchange.Maker wrong, String test) {
    return Arguments.of(name, test, wrong);
  }

  @AfterEach
  void noSubject() {
    communicators = null;
    exchanges = null;
  }

  @ParameterizedTest(name = "{0}: {1}")
  @MethodSource("communicatorMistakes")
  void aWrongCommunicatorIsCaught(String name, String test, UnaryOperator<Communicator> wrong) {
    communicators = wrong;
    requireCaught(name, WrongGroup.class, CommunicatorConformanceTest.class, test);
  }

  @ParameterizedTest(name = "{0}: {1}")
  @MethodSource("exchangeMistakes")
  void aWrongExchangeIsCaught(String name, String test, TestExchange.Maker wrong) {
    exchanges = wrong;
    requireCaught(name, WrongExchange.class, ExchangeConformanceTest.class, test);
  }

  private static void requireCaught(String name, Class<?> subject, Class<?> kit, String test) {
    Method method =
        Arrays.stream(kit.getMethods())
            .filter(m -> m.getName().endsWith(test))
            .findFirst()
            .orElseThrow(() -> new AssertionError("the kit has no test " + test));
    List<Throwable> failures =
        EngineTestKit.engine("junit-jupiter")
            .selectors(selectMethod(subject, method))
            .execute()
            .testEvents()
            .failed()
            .stream()
            .map(e -> e.getRequiredPayload(TestExecutionResult.class).getThrowable().orElseThrow())
            .toList();
    assertThat(failures).as(name).isNotEmpty();
    String rule = "MOE-" + test.substring(0, test.lastIndexOf('_')).replace('_', '.');
    // what is written where it must not be has the same rule everywhere
    assertThat(failures).allSatisfy(f -> assertThat(f.getMessage()).containsAnyOf(rule, "MOE-3."));
  }
}
