package io.moe4j.tck;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assertions.fail;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.Experts;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.api.spi.Support;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.ServiceLoader;
import java.util.Set;
import java.util.TreeSet;
import java.util.function.UnaryOperator;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * Rules 1: what a backend says of itself. A part of {@link ExpertsConformanceTest}, which backends
 * extend.
 */
abstract class ExpertsAnswerTests extends ExpertsSubject {
  ExpertsAnswerTests() {}

  /** Name, description, device, format. */
  @Test
  public final void required_MOE_1_1_describesItself() {
    ExpertsBackend backend = backend();
    assertTrue(
        backend.name().matches("[a-z][a-z0-9-]*"),
        "MOE-1.1: the name is \""
            + backend.name()
            + "\", must be lower-case letters, digits, dashes");
    assertTrue(
        !backend.description().isBlank() && backend.description().lines().count() == 1,
        "MOE-1.1: the description must be one line, is \"" + backend.description() + "\"");
    assertNotNull(backend.deviceType(), "MOE-1.1: deviceType");
    assertNotNull(backend.activationFormat(), "MOE-1.1: activationFormat");
    ExpertsBackend again = backend();
    assertEquals(backend.name(), again.name(), "MOE-1.1: the name is not stable");
    assertEquals(
        backend.supportsLora(), again.supportsLora(), "MOE-1.1: supportsLora is not stable");
  }

  /** The oracle finds backends by their services file; a missing line is the commonest mistake. */
  @Test
  public final void required_MOE_1_1_isFoundByServiceLoader() {
    Class<?> type = backend().getClass();
    boolean found =
        ServiceLoader.load(ExpertsBackend.class, type.getClassLoader()).stream()
            .anyMatch(provider -> provider.type() == type);
    assertTrue(
        found,
        "MOE-1.1: "
            + type.getName()
            + " is not in META-INF/services/"
            + ExpertsBackend.class.getName());
  }

  /** Any config, any machine, also one without the backend's device; twice the same answer. */
  @Test
  public final void required_MOE_1_1_answersForAnyConfigAndPlatform() {
    List<Platform> machines =
        List.of(
            kit().platform,
            Platform.cpuOnly(),
            Platform.of(),
            Platform.of(DeviceInfo.cuda(0, "T4", 7, 5)),
            Platform.of(DeviceInfo.of(DeviceId.CPU, "CPU"), DeviceInfo.cuda(0, "H200", 9, 0)),
            Platform.of(DeviceInfo.of(new DeviceId(DeviceType.ROCM, 0), "MI300X")),
            Platform.of(DeviceInfo.of(new DeviceId(new DeviceType("abacus"), 3), "Abacus")));
    List<MoeConfig> configs = new ArrayList<>(Grid.computed());
    for (Grid.Dtypes d : Grid.DTYPES) {
      configs.add(Grid.layer(d, 7168, 2048, 256, 8).build());
      Grid.questions().values().forEach(q -> configs.add(q.apply(Grid.layer(d)).build()));
    }
    for (MoeConfig config : configs) {
      for (Platform machine : machines) {
        Support first = kit().ask(kit().own(config), machine);
        Support second = kit().ask(kit().own(config), machine);
        assertEquals(first, second, () -> "MOE-1.1: two answers for " + Problem.describe(config));
        try {
          var _ = backend().priority(kit().own(config), machine);
        } catch (RuntimeException e) {
          throw new AssertionError("MOE-1.1: priority threw for " + Problem.describe(config), e);
        }
      }
    }
  }

  /** Every reason names a value. */
  @Test
  public final void required_MOE_1_2_refusalsNameTheOffendingValue() {
    for (Grid.Dtypes d : Grid.DTYPES) {
      Grid.questions()
          .values()
          .forEach(question -> {
            MoeConfig config = kit().own(question.apply(Grid.layer(d)).build());
            Refusals.requireReadable(config, kit().platform, kit().ask(config, kit().platform));
          });
    }
  }

  /** What is refused for one thing and for another is, with both, refused for both. */
  @Test
  public final void required_MOE_1_2_refusalsCarryEveryReason() {
    MoeConfig base = askedAbout().orElseThrow(() -> new AssertionError(NOTHING_SUPPORTED));
    List<Map.Entry<String, UnaryOperator<MoeConfig.Builder>>> questions =
        List.copyOf(Grid.questions().entrySet());
    for (int i = 0; i < questions.size(); i++) {
      for (int j = i + 1; j < questions.size(); j++) {
        MoeConfig first = questions.get(i).getValue().apply(base.toBuilder()).build();
        MoeConfig second = questions.get(j).getValue().apply(base.toBuilder()).build();
        MoeConfig both;
        try {
          both = questions.get(j).getValue().apply(first.toBuilder()).build();
        } catch (IllegalArgumentException e) {
          continue; // no layer has both
        }
        if (!both.equals(questions.get(i).getValue().apply(second.toBuilder()).build())) {
          continue; // both change the same component
        }
        if (isDtype(questions.get(i).getKey()) && isDtype(questions.get(j).getKey())) {
          continue; // refused alone for not fitting the other: together they may fit
        }
        var expected = new TreeSet<>(codes(first));
        expected.addAll(codes(second));
        var missing = new TreeSet<>(expected);
        missing.removeAll(codes(both));
        if (!codes(first).isEmpty() && !codes(second).isEmpty() && !missing.isEmpty()) {
          fail(
              "MOE-1.2: \""
                  + questions.get(i).getKey()
                  + "\" and \""
                  + questions.get(j).getKey()
                  + "\" are refused for "
                  + expected
                  + ", together only for "
                  + codes(both));
        }
      }
    }
  }

  /** A config that is supported, and to which every question can be put. */
  private java.util.Optional<MoeConfig> askedAbout() {
    return Stream.concat(
            Grid.computed().stream(),
            Grid.DTYPES.stream().map(d -> Grid.layer(d).quantScheme(QuantScheme.int4(32)).build()))
        .filter(kit()::supports)
        .map(kit()::own)
        .filter(ExpertsAnswerTests::takesEveryQuestion)
        .findFirst();
  }

  private static boolean takesEveryQuestion(MoeConfig config) {
    try {
      Grid.questions().values().forEach(q -> q.apply(config.toBuilder()).build());
      return true;
    } catch (IllegalArgumentException e) {
      return false; // of sizes that, say, have no groups of experts
    }
  }

  private static boolean isDtype(String question) {
    return question.startsWith("input ") || question.startsWith("weights ");
  }

  private Set<Support.Code> codes(MoeConfig config) {
    return kit().ask(config, kit().platform).reasons().stream()
        .map(Support.Reason::code)
        .collect(Collectors.toCollection(TreeSet::new));
  }

  private static final String NOTHING_SUPPORTED =
      "MOE-1.3: the backend refuses every config of the kit on this device: nothing was tested";

  private java.util.Optional<MoeConfig> supported() {
    return Grid.computed().stream().filter(kit()::supports).findFirst().map(kit()::own);
  }

  /** A backend that refuses everything would pass everything. */
  @Test
  public final void required_MOE_1_3_supportsSomething() {
    assertTrue(supported().isPresent(), NOTHING_SUPPORTED);
    if (kit().backend.supportsLora()) {
      assertTrue(
          LoraCases.cases().anyMatch(c -> kit().supports(c.config())),
          "MOE-1.3: supportsLora() is true, but every config with LoRA is refused");
    }
  }

  /** A yes is kept. */
  @Test
  public final void required_MOE_1_3_preparesWhatItSupports() {
    for (MoeConfig config : Grid.computed()) {
      if (kit().supports(config)) {
        Problem problem = problem(config, 1);
        try (Experts experts = kit().prepare(problem)) {
          assertNotNull(experts, () -> "MOE-1.3: prepare returned null for " + problem);
          assertTrue(
              experts.workspaceBytes(0) >= 0 && experts.workspaceBytes(1024) >= 0,
              "MOE-1.3: workspaceBytes is negative");
        }
      }
    }
  }

  /**
   * {@code facts()} before and after a call.
   *
   * @param dtypes element types of the tensors
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.Grid#dtypePairs")
  public final void required_MOE_1_4_factsStayTheSame(Object dtypes) {
    Problem p = problem(Grid.layer((Grid.Dtypes) dtypes).build(), 5);
    kit().assumeSupported(p.config);
    try (Experts experts = kit().prepare(p);
        Harness harness = kit().harness(p, experts)) {
      Facts.requireSame(experts::facts, harness::apply);
    }
  }
}
