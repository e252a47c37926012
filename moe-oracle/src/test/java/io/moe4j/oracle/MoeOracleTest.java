package io.moe4j.oracle;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import ch.qos.logback.classic.Level;
import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.spi.Support;
import io.moe4j.api.spi.Support.Code;
import java.util.List;
import org.junit.jupiter.api.Test;

class MoeOracleTest {
  private static final MoeConfig CONFIG = Zoo.config().build();

  @Test
  void largestPriorityWinsThenTheName() {
    try (MoeOracle oracle =
        Zoo.oracle(
            Zoo.cpuBackend(),
            new FakeBackend("b", DeviceType.CPU).priority(300),
            new FakeBackend("a", DeviceType.CPU).priority(300))) {
      Selection s = oracle.select(CONFIG, Zoo.CPU_ONLY);
      assertThat(s.candidates()).extracting(Candidate::name).containsExactly("a", "b", "cpu");
      assertThat(s.chosenBackend().name()).isEqualTo("a");
    }
  }

  @Test
  void everyReasonIsKeptTheOraclesAndTheBackendsOwn() {
    FakeBackend picky =
        new FakeBackend("picky", DeviceType.CUDA)
            .batched()
            .support((c, p) ->
                Support.checks()
                    .require(false, Code.SIZE, () -> "H is 2048, must be at most 1024")
                    .require(false, Code.DTYPE, () -> "weights are BF16, takes F16")
                    .result());
    try (MoeOracle oracle = Zoo.oracle(picky)) {
      assertThatThrownBy(() -> oracle.select(Zoo.loraConfig().build(), Zoo.CPU_ONLY))
          .isInstanceOfSatisfying(
              UnsupportedConfigException.class,
              e ->
                  assertThat(e.selection().candidates().getFirst().support().reasons())
                      .containsExactly(
                          new Support.Reason(
                              Code.DEVICE,
                              "no cuda device (libcuda.so.1 was not found); this machine has"
                                  + " cpu:0"),
                          new Support.Reason(
                              Code.ACTIVATION_FORMAT,
                              "takes BATCHED activations, the layer has STANDARD"),
                          new Support.Reason(
                              Code.LORA,
                              "takes no adapters, the layer has LoRA on (8 slots, rank up to"
                                  + " 64)"),
                          new Support.Reason(Code.SIZE, "H is 2048, must be at most 1024"),
                          new Support.Reason(Code.DTYPE, "weights are BF16, takes F16")))
          .hasMessageContaining("H is 2048")
          .hasMessageContaining("weights are BF16");
    }
  }

  @Test
  void explicitChoiceIsTakenWhateverItsPriority() {
    try (MoeOracle oracle = Zoo.oracle(Zoo.all(true, true))) {
      Selection s = oracle.select(CONFIG, Zoo.HOPPER, "reference");
      assertThat(s.chosenBackend().name()).isEqualTo("reference");
      assertThat(s.isExplicit()).isTrue();
      assertThat(s.candidates()).hasSize(11); // the others were asked all the same
      assertThat(s.explain()).contains("chosen: reference (asked for by name)");
    }
  }

  @Test
  void explicitChoiceThatDoesNotFitIsRefusedWithItsReasons() {
    try (MoeOracle oracle = Zoo.oracle(Zoo.all(true, true))) {
      assertThatThrownBy(() -> oracle.select(CONFIG, Zoo.TURING, "triton"))
          .isInstanceOfSatisfying(
              UnsupportedConfigException.class, e -> assertThat(e.selection().chosen()).isEmpty())
          .hasMessageStartingWith(
              "backend \"triton\" was asked for and cannot run this layer: compute capability"
                  + " below 8.0");
    }
  }

  @Test
  void unknownNameListsTheKnown() {
    try (MoeOracle oracle = Zoo.oracle(Zoo.cpuBackend(), Zoo.triton())) {
      assertThatThrownBy(() -> oracle.select(CONFIG, Zoo.HOPPER, "tritn"))
          .isInstanceOf(UnsupportedConfigException.class)
          .hasMessageStartingWith(
              "backend \"tritn\" was asked for and is not known; known are [cpu, triton]");
    }
  }

  @Test
  void noBackendAtAllSaysWhatToDo() {
    try (MoeOracle oracle = Zoo.oracle()) {
      assertThatThrownBy(() -> oracle.select(CONFIG, Zoo.HOPPER))
          .isInstanceOf(UnsupportedConfigException.class)
          .hasMessageContaining("add backend-cpu or another backend to the class path");
    }
  }

  @Test
  void referenceIsTakenOnlyWhenNothingElseFitsAndThenWithAWarning() {
    try (MoeOracle oracle = Zoo.oracle(Zoo.reference(), Zoo.cpuBackend());
        LogCapture log = new LogCapture(MoeOracle.class)) {
      assertThat(oracle.select(CONFIG, Zoo.CPU_ONLY).chosenBackend().name()).isEqualTo("cpu");
      assertThat(log.at(Level.WARN)).isEmpty();
    }
    FakeBackend refusing =
        Zoo.cpuBackend().support((c, p) -> Support.no(Code.SIZE, "top_k is 8, takes 1"));
    try (MoeOracle oracle = Zoo.oracle(Zoo.reference(), refusing);
        LogCapture log = new LogCapture(MoeOracle.class)) {
      assertThat(oracle.select(CONFIG, Zoo.CPU_ONLY).chosenBackend().name()).isEqualTo("reference");
      assertThat(log.at(Level.WARN)).hasSize(1).first().asString().contains("reference");
      oracle.select(CONFIG, Zoo.CPU_ONLY, "reference");
      assertThat(log.at(Level.WARN)).hasSize(1); // who asks for it by name knows
    }
  }

  @Test
  void oneLogLineTellsTheDecision() {
    try (MoeOracle oracle = Zoo.oracle(Zoo.all(true, false));
        LogCapture log = new LogCapture(MoeOracle.class)) {
      for (int layer = 0; layer < 3; layer++) {
        oracle.select(CONFIG, Zoo.HOPPER);
      }
      assertThat(log.at(Level.INFO)).hasSize(1);
      assertThat(log.at(Level.INFO).getFirst())
          .startsWith(
              "Using triton experts backend out of candidates [triton, flashinfer-trtllm, cpu,"
                  + " reference] (refused: ")
          .contains("marlin: weights are [none], takes 4 bits")
          .contains("tpu: no tpu device; this machine has cuda:0, cpu:0");
      oracle.select(Zoo.loraConfig().build(), Zoo.HOPPER);
      assertThat(log.at(Level.INFO)).hasSize(2); // another decision, LoRA or not
      oracle.select(CONFIG, Zoo.HOPPER, "cpu");
      assertThat(log.at(Level.INFO)).hasSize(3).last().asString().contains("as asked for");
    }
  }

  @Test
  void backendsThatBreakTheContractAreRowsNotCrashes() {
    try (MoeOracle oracle =
        Zoo.oracle(
            Zoo.cpuBackend(),
            new FakeBackend("throws", DeviceType.CPU)
                .support((c, p) -> {
                  throw new IllegalStateException("boom");
                }),
            new FakeBackend("misses", DeviceType.CPU)
                .support((c, p) -> {
                  throw new NoClassDefFoundError("com/acme/Dependency");
                }),
            new FakeBackend("says-nothing", DeviceType.CPU).support((c, p) -> nothing()),
            new FakeBackend("says-null", DeviceType.CPU)
                .support((c, p) -> Support.no(Code.SIZE, noText())),
            new FakeBackend("has-no-priority", DeviceType.CPU)
                .priority((c, p) -> {
                  throw new AssertionError("no priority");
                }))) {
      Selection s = oracle.select(CONFIG, Zoo.CPU_ONLY);
      assertThat(s.chosenBackend().name()).isEqualTo("cpu");
      assertThat(reason(s, "throws"))
          .isEqualTo("isSupportedConfig failed: java.lang.IllegalStateException: boom");
      assertThat(reason(s, "misses"))
          .isEqualTo("isSupportedConfig failed: class com.acme.Dependency is missing");
      assertThat(reason(s, "says-nothing")).isEqualTo("isSupportedConfig returned null");
      assertThat(reason(s, "says-null"))
          .isEqualTo("isSupportedConfig failed: java.lang.NullPointerException: message");
      assertThat(s.explain()).contains("says-null");
      assertThat(reason(s, "has-no-priority"))
          .isEqualTo("priority failed: java.lang.AssertionError: no priority");
      assertThat(s.candidate("has-no-priority").orElseThrow().priority()).isEmpty();
    }
  }

  @SuppressWarnings("NullAway") // what a stranger's code may do
  private static Support nothing() {
    return null;
  }

  @SuppressWarnings("NullAway") // likewise
  private static String noText() {
    return null;
  }

  @Test
  void amongEqualPrioritiesTheNameDecidesAndTheTextSaysSo() {
    try (MoeOracle oracle =
        Zoo.oracle(
            Zoo.reference(),
            new FakeBackend("beta", DeviceType.CPU).priority((c, p) -> 100),
            Zoo.cpuBackend(),
            new FakeBackend("alpha", DeviceType.CPU).priority((c, p) -> 100))) {
      Selection s = oracle.select(CONFIG, Zoo.CPU_ONLY);
      assertThat(s.chosenBackend().name()).isEqualTo("alpha");
      assertThat(s.explain())
          .contains("chosen: alpha (first by name of 3 with the highest priority, of 4 that fit):");
    }
  }

  private static String reason(Selection s, String backend) {
    Support support = s.candidate(backend).orElseThrow().support();
    assertThat(support.reasons())
        .hasSize(1)
        .first()
        .satisfies(r -> assertThat(r.code()).isEqualTo(Code.LOAD_FAILURE));
    return support.reasons().getFirst().message();
  }

  @Test
  void virtualMachineErrorsAreReasonsToo() {
    for (Error e : List.of(new OutOfMemoryError("of this test"), new StackOverflowError())) {
      try (MoeOracle oracle =
          Zoo.oracle(
              new FakeBackend("eats", DeviceType.CPU)
                  .support((c, p) -> {
                    throw e;
                  }))) {
        assertThatThrownBy(() -> oracle.select(CONFIG, Zoo.CPU_ONLY))
            .isInstanceOf(UnsupportedConfigException.class)
            .hasMessageContaining(e.getClass().getName());
      }
    }
  }

  @Test
  void explainIsAnAlignedTableWithOneLineAReason() {
    FakeBackend two =
        new FakeBackend("zz", DeviceType.CPU)
            .support((c, p) ->
                new Support.No(
                    List.of(
                        new Support.Reason(Code.SIZE, "first reason"),
                        new Support.Reason(Code.BIAS, "second reason"))));
    try (MoeOracle oracle = Zoo.oracle(Zoo.reference(), Zoo.cpuBackend(), two)) {
      MoeConfig config = Zoo.config().lora(new LoraConfig(4, 32)).build();
      List<String> lines = oracle.evaluate(config, Zoo.CPU_ONLY).explain().lines().toList();
      assertThat(lines.subList(0, 4))
          .containsExactly(
              "layer:   E=64 top_k=8 H=2048 I=1024, BF16 weights, BF16 input, SILU, STANDARD, LoRA"
                  + " on (4 slots, rank up to 32)",
              "machine: cpu:0 some CPU",
              "chosen: cpu (highest priority of 2 that fit): fake cpu",
              "");
      List<String> table = lines.subList(4, lines.size());
      assertThat(table).hasSize(6);
      int verdict = table.getFirst().indexOf("verdict");
      assertThat(table.stream().skip(1).map(l -> l.substring(verdict)))
          .containsExactly(
              "chosen",
              "fits",
              "takes no adapters, the layer has LoRA on (4 slots, rank up to 32)",
              "first reason",
              "second reason");
      assertThat(table.get(1)).startsWith("*  cpu").contains("  100  ");
      assertThat(table.get(2)).startsWith("   reference").contains("-1000  ");
      assertThat(table.stream().map(String::stripTrailing)).isEqualTo(table);
    }
  }

  @Test
  void evaluateNeitherThrowsNorLogs() {
    try (MoeOracle oracle = Zoo.oracle(Zoo.triton());
        LogCapture log = new LogCapture(MoeOracle.class)) {
      Selection s = oracle.evaluate(CONFIG, Zoo.CPU_ONLY);
      assertThat(s.chosen()).isEmpty();
      assertThat(s.explain()).contains("no experts backend fits this layer on this machine");
      assertThat(log.at(Level.INFO)).isEmpty();
      assertThatThrownBy(s::chosenBackend).isInstanceOf(UnsupportedConfigException.class);
    }
  }

  @Test
  void activationFormatOfTheLayerDecides() {
    MoeConfig batched = Zoo.config().activationFormat(ActivationFormat.BATCHED).build();
    try (MoeOracle oracle = Zoo.oracle(Zoo.all(false, false))) {
      assertThat(oracle.select(batched, Zoo.HOPPER).chosenBackend().name())
          .isEqualTo("batched-triton");
    }
  }
}
