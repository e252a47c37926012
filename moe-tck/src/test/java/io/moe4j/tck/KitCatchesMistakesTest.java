package io.moe4j.tck;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.platform.engine.discovery.DiscoverySelectors.selectIteration;
import static org.junit.platform.engine.discovery.DiscoverySelectors.selectMethod;
import static org.junit.platform.testkit.engine.EventConditions.event;
import static org.junit.platform.testkit.engine.EventConditions.finishedWithFailure;
import static org.junit.platform.testkit.engine.TestExecutionResultConditions.message;

import io.moe4j.api.config.Activation;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.backend.cpu.reference.CpuReferenceBackend;
import java.lang.reflect.Method;
import java.lang.reflect.RecordComponent;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.function.Supplier;
import java.util.function.UnaryOperator;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.platform.engine.discovery.MethodSelector;
import org.junit.platform.testkit.engine.EngineTestKit;
import org.junit.platform.testkit.engine.Events;

/**
 * Each deliberately wrong backend fails the test of the rule it breaks, and the message says so.
 */
class KitCatchesMistakesTest {
  private static @Nullable Supplier<ExpertsBackend> subject;

  /** The kit on whatever is to be looked at; run by the engine below, not by the build. */
  static final class Subject extends ExpertsConformanceTest {
    @Override
    protected ExpertsBackend backend() {
      if (subject == null) {
        return Assumptions.abort("a part of KitCatchesMistakesTest");
      }
      return subject.get();
    }
  }

  static Stream<Arguments> mistakes() {
    return Stream.of(
        wrong(WrongBackends.ShoutingName::new, "MOE-1.1", "describesItself"),
        wrong(WrongBackends.Unregistered::new, "MOE-1.1", "isFoundByServiceLoader"),
        wrong(WrongBackends.SupportQueryThrows::new, "MOE-1.1", "answersForAnyConfigAndPlatform"),
        wrong(
            WrongBackends.NeedsItsDeviceToAnswer::new, "MOE-1.1", "answersForAnyConfigAndPlatform"),
        wrong(WrongBackends.RefusesWithoutValues::new, "MOE-1.2", "refusalsNameTheOffendingValue"),
        wrong(WrongBackends.SaysBadArgument::new, "MOE-1.2", "refusalsNameTheOffendingValue"),
        wrong(WrongBackends.SaysAnErrorsNumber::new, "MOE-1.2", "refusalsNameTheOffendingValue"),
        wrong(WrongBackends.NamesSomethingElse::new, "MOE-1.2", "refusalsNameTheOffendingValue"),
        wrong(WrongBackends.NamesTheSwitchOnly::new, "MOE-1.2", "refusalsNameTheOffendingValue"),
        wrong(WrongBackends.FirstReasonOnly::new, "MOE-1.2", "refusalsCarryEveryReason"),
        wrong(WrongBackends.RefusesEverything::new, "MOE-1.3", "supportsSomething"),
        wrong(WrongBackends.PrepareThrows::new, "MOE-1.3", "preparesWhatItSupports"),
        wrong(WrongBackends.OneActivationForAll::new, "MOE-2.1", "activations"),
        wrong(WrongBackends.LimitIgnored::new, "MOE-2.1", "activations"),
        wrong(WrongBackends.GateAndUpSwapped::new, "MOE-2.1", "dtypes"),
        wrong(WrongBackends.ShortAccumulator::new, "MOE-2.1", "dtypes"),
        wrong(WrongBackends.BiasForgotten::new, "MOE-2.1", "features"),
        wrong(WrongBackends.StridesIgnored::new, "MOE-2.1", "layouts"),
        wrong(WrongBackends.TailForgotten::new, "MOE-2.1", "tensorsAtAnyElement"),
        wrong(
            WrongBackends.MinusOneIsExpertZero::new,
            "MOE-2.2",
            "pairsWithoutExpertContributeNothing"),
        wrong(
            WrongBackends.LonelyTokensUnwritten::new,
            "MOE-2.2",
            "pairsWithoutExpertContributeNothing"),
        wrong(WrongBackends.UnknownIdsClamped::new, "MOE-2.2", "unknownIdsContributeNothing"),
        wrong(WrongBackends.MapIgnored::new, "MOE-2.2", "expertsOfOtherRanksContributeNothing"),
        wrong(WrongBackends.ZeroTokensThrow::new, "MOE-2.3", "zeroTokens"),
        wrong(WrongBackends.WeightForgotten::new, "MOE-2.4", "weightsAreAppliedOnce"),
        wrong(WrongBackends.WeightTwice::new, "MOE-2.4", "weightsAreAppliedOnce"),
        wrong(WrongBackends.WeightOnInputIgnored::new, "MOE-2.4", "weightsAreAppliedOnce"),
        wrong(WrongBackends.FaultsSpread::new, "MOE-2.5", "faultsStayInTheirToken"),
        wrong(WrongBackends.FaultsVanish::new, "MOE-2.5", "faultsStayInTheirToken"),
        wrong(WrongBackends.BatchedReadsPastCount::new, "MOE-2.1", "dtypes"),
        wrong(
            WrongBackends.WritesPastOutput::new,
            "MOE-3.1",
            "nothingOutsideOutputAndWorkspaceIsTouched"),
        wrong(
            WrongBackends.WritesBeforeOutput::new,
            "MOE-3.1",
            "nothingOutsideOutputAndWorkspaceIsTouched"),
        wrong(
            WrongBackends.WritesPastWorkspace::new,
            "MOE-3.1",
            "nothingOutsideOutputAndWorkspaceIsTouched"),
        wrong(
            WrongBackends.ReadsPastInput::new,
            "MOE-3.1",
            "nothingOutsideOutputAndWorkspaceIsTouched"),
        wrong(WrongBackends.WritesInput::new, "MOE-3.2", "inputsAreNotWritten"),
        wrong(WrongBackends.WritesWeights::new, "MOE-3.2", "inputsAreNotWritten"),
        wrong(WrongBackends.ClaimsLora::new, "MOE-4.1", "supportsLoraAndExpertsAgree"),
        wrong(WrongBackends.HidesLora::new, "MOE-4.1", "supportsLoraAndExpertsAgree"),
        wrong(WrongLoraBackends.LoraIgnored::new, "MOE-4.2", "deltas"),
        wrong(WrongLoraBackends.LoraOfTheFirstSlot::new, "MOE-4.2", "deltas"),
        wrong(WrongLoraBackends.LoraOfTheFirstExpert::new, "MOE-4.2", "deltas"),
        wrong(WrongLoraBackends.LoraRankCut::new, "MOE-4.2", "deltas"),
        wrong(WrongLoraBackends.LoraNeedsAllProjections::new, "MOE-4.2", "deltas"),
        wrong(WrongLoraBackends.LoraStridesIgnored::new, "MOE-4.2", "deltas"),
        wrong(WrongLoraBackends.LoraBehindTheActivation::new, "MOE-4.2", "deltas"),
        wrong(WrongLoraBackends.LoraUnweighted::new, "MOE-4.2", "deltas"),
        wrong(WrongLoraBackends.LoraIntoTheWrongHalf::new, "MOE-4.2", "deltas"),
        wrong(
            WrongLoraBackends.LoraOnBaseTokens::new,
            "MOE-4.3",
            "tokensWithoutAdapterGetTheBaseResult"),
        wrong(WrongBackends.SharedScratch::new, "MOE-5.1", "concurrentCallsDoNotDisturbEachOther"),
        wrong(CpuReferenceBackend::new, "MOE-5.2", "allocationDoesNotGrowWithTokens"),
        wrong(WrongBackends.FactsChange::new, "MOE-1.4", "factsStayTheSame"),
        wrong(WrongBackends.FactTwice::new, "MOE-1.4", "factsStayTheSame"),
        wrong(WrongBackends.FactsThrow::new, "MOE-1.4", "factsStayTheSame"),
        wrong(WrongBackends.SecondCloseThrows::new, "MOE-5.3", "closeMayBeCalledTwice"),
        wrong(WrongBackends.LeaksDeviceMemory::new, "MOE-5.3", "closeReleasesDeviceMemory"),
        wrong(WrongBackends.LastBitVaries::new, "MOE-5.4", "equalCallsGiveEqualBits"),
        wrong(WrongBackends.BatchSizeShows::new, "MOE-5.4", "batchInvarianceIsBitExact"),
        wrong(WrongWeights.PlainProjectionsForgotten::new, "MOE-7.2", "mixedSchemes"),
        wrong(WrongWeights.ScaleOfTheNeighbour::new, "MOE-7.2", "mixedSchemes"),
        wrong(WrongLoraBackends.LoraIgnored::new, "MOE-7.3", "deltasOnQuantisedWeights"),
        wrong(WrongMonolithicBackends.MonolithicLoraIgnored::new, "MOE-4.2", "deltas"),
        wrong(WrongMonolithicBackends.RoutingBiasIgnored::new, "MOE-8.1", "monolithicRouting"),
        wrong(WrongMonolithicBackends.ScalingForgotten::new, "MOE-8.1", "monolithicRouting"),
        wrong(WrongMonolithicBackends.OneRoutingForAll::new, "MOE-8.1", "monolithicRouting"),
        wrong(
            WrongMonolithicBackends.Bf16LogitsReadAsF16::new,
            "MOE-8.1",
            "monolithicRoutingFromBf16Logits"));
  }

  private static Arguments wrong(Supplier<ExpertsBackend> backend, String rule, String test) {
    return Arguments.of(backend.get().getClass().getSimpleName(), rule, test, backend);
  }

  @ParameterizedTest(name = "{0}: {1} {2}")
  @MethodSource("mistakes")
  void isCaught(String name, String rule, String test, Supplier<ExpertsBackend> backend) {
    Events events = run(backend, method(rule, test));
    assertThat(events.failed().count()).as("failures of %s in %s", name, test).isPositive();
    events
        .failed()
        .assertThatEvents()
        .allSatisfy(
            e -> assertThat(e).is(event(finishedWithFailure(message(m -> m.contains(rule))))));
  }

  /** Each kind and each parameter of an activation is told from its neighbour. */
  @ParameterizedTest(name = "{0}")
  @MethodSource("activationMistakes")
  void aWrongActivationIsCaught(String name, UnaryOperator<Activation> mistake) {
    isCaught(name, "MOE-2.1", "activations", () -> new WrongActivations.Mistaken(mistake));
  }

  static Stream<Arguments> activationMistakes() {
    List<Arguments> all = new ArrayList<>();
    WrongActivations.kinds()
        .forEach((kind, other) -> {
          UnaryOperator<Activation> mistake =
              a -> a.kind() == kind ? new Activation(other, a.alpha(), a.beta(), a.limit()) : a;
          all.add(Arguments.of(kind + " taken for " + other, mistake));
        });
    WrongActivations.parameters()
        .forEach((name, mistake) -> all.add(Arguments.of(name + " ignored", mistake)));
    return all.stream();
  }

  /** What is added to an activation later gets a mistake, or this fails. */
  @Test
  void everyPartOfAnActivationHasAMistake() {
    assertThat(WrongActivations.kinds()).containsOnlyKeys(Activation.Kind.values());
    assertThat(WrongActivations.parameters().keySet())
        .containsExactlyInAnyOrderElementsOf(
            Arrays.stream(Activation.class.getRecordComponents())
                .map(RecordComponent::getName)
                .toList());
  }

  /** A mistake in quantised weights, and a case that shows it. */
  static Stream<Arguments> weightMistakes() {
    return Stream.of(
        Arguments.of("gptq v1 int4", supplier(WrongWeights.ZeroPointOffByOne::new)),
        Arguments.of("gptq v2 int8", supplier(WrongWeights.ZeroPointOffByOne::new)),
        Arguments.of("awq group 32", supplier(WrongWeights.ZeroPointOffByOne::new)),
        Arguments.of("gptq v1 group 128 int4", supplier(WrongWeights.GroupOrderReversed::new)),
        Arguments.of(
            "compressed-tensors int8 group 32", supplier(WrongWeights.GroupOrderReversed::new)),
        Arguments.of("gptq act-order int4", supplier(WrongWeights.ActOrderIgnored::new)),
        Arguments.of("gptq v1 act-order int8", supplier(WrongWeights.ActOrderIgnored::new)),
        Arguments.of("awq group 128", supplier(WrongWeights.AwqOrderIgnored::new)),
        Arguments.of("fp8 per tensor", supplier(WrongWeights.ScaleOfTheNeighbour::new)),
        Arguments.of("fp8 per channel", supplier(WrongWeights.ScaleOfTheNeighbour::new)),
        Arguments.of("int8 per channel", supplier(WrongWeights.ScaleOfTheNeighbour::new)),
        Arguments.of("mxfp4", supplier(WrongWeights.ScaleOfTheNeighbour::new)),
        Arguments.of("mxfp8", supplier(WrongWeights.ScaleOfTheNeighbour::new)),
        Arguments.of("gptq v1 int4", supplier(WrongBackends.GateAndUpSwapped::new)),
        Arguments.of("fp8 block", supplier(WrongBackends.GateAndUpSwapped::new)),
        Arguments.of("mxfp4", supplier(WrongBackends.GateAndUpSwapped::new)),
        Arguments.of("fp8 block", supplier(WrongWeights.PartialBlockMisread::new)),
        Arguments.of(
            "nvfp4, global scale multiplied", supplier(WrongWeights.GlobalScaleReciprocal::new)),
        Arguments.of(
            "nvfp4, global scale divided", supplier(WrongWeights.GlobalScaleReciprocal::new)),
        Arguments.of(
            "nvfp4, global scale multiplied", supplier(WrongWeights.GlobalScaleOfGateForUp::new)),
        Arguments.of(
            "nvfp4, global scale divided", supplier(WrongWeights.GlobalScaleOfGateForUp::new)));
  }

  private static Supplier<ExpertsBackend> supplier(Supplier<ExpertsBackend> s) {
    return s;
  }

  @ParameterizedTest
  @MethodSource("weightMistakes")
  void aWrongWeightIsCaught(String stored, Supplier<ExpertsBackend> backend) {
    List<QuantCases.QuantCase> cases = QuantCases.uniform().toList();
    int[] these =
        IntStream.range(0, cases.size()).filter(n -> cases.get(n).name().equals(stored)).toArray();
    assertThat(these).as("cases of %s in every dtype", stored).hasSize(3);
    subject = backend;
    try {
      Events events =
          EngineTestKit.engine("junit-jupiter")
              .selectors(
                  selectIteration(
                      selectMethod(Subject.class, method("MOE-7.1", "quantisedWeights")), these))
              .execute()
              .testEvents();
      // in every dtype: what shows in f32 alone would be found too late
      events.assertStatistics(s -> s.failed(3));
      events
          .failed()
          .assertThatEvents()
          .allSatisfy(e ->
              assertThat(e).is(event(finishedWithFailure(message(m -> m.contains("MOE-7.1"))))));
    } finally {
      subject = null;
    }
  }

  /** What is left to the contract's default methods and the kit's own wrapper is right. */
  @Test
  void loraByDefaultMethodsPasses() {
    Events events = run(WrongLoraBackends.LoraByDefaultMethods::new, method("MOE-4.2", "deltas"));
    events.assertStatistics(s -> s.failed(0).aborted(0));
    assertThat(events.succeeded().count()).isGreaterThan(100);
  }

  /** Refusing with good reasons is the third outcome. */
  @Test
  void aGoodRefusalIsNeitherPassedNorFailed() {
    Events events = run(WrongBackends.FirstReasonOnly::new, method("MOE-2.1", "layouts"));
    events.assertStatistics(s -> s.failed(0));
    assertThat(events.aborted().count()).isPositive();
    assertThat(events.succeeded().count()).isPositive();
  }

  private static Method method(String rule, String test) {
    String suffix = "_" + rule.replace('-', '_').replace('.', '_') + "_" + test;
    return Arrays.stream(ExpertsConformanceTest.class.getMethods())
        .filter(m -> m.getName().endsWith(suffix))
        .findFirst()
        .orElseThrow(() -> new AssertionError("the kit has no test " + suffix));
  }

  private static Events run(Supplier<ExpertsBackend> backend, Method method) {
    subject = backend;
    long stable = Allocation.stableNanos;
    Allocation.stableNanos = stable / 10;
    try {
      // one pair of dtypes is enough for what takes long
      boolean slow = method.getName().contains("5_2");
      MethodSelector all = selectMethod(Subject.class, method);
      return EngineTestKit.engine("junit-jupiter")
          .selectors(slow ? selectIteration(all, 0) : all)
          .execute()
          .testEvents();
    } finally {
      Allocation.stableNanos = stable;
      subject = null;
    }
  }
}
