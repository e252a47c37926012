package io.moe4j.tck;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assertions.fail;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.Experts;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.api.spi.LoraExperts;
import io.moe4j.api.spi.Support;
import io.moe4j.api.tensor.DType;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.OptionalLong;
import java.util.ServiceLoader;
import java.util.Set;
import java.util.TreeSet;
import java.util.function.UnaryOperator;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestInstance;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * What an {@link ExpertsBackend} has to hold: extend this class, say which backend, run it with
 * JUnit.
 *
 * <pre>{@code
 * public final class MyBackendTest extends ExpertsConformanceTest {
 *   protected ExpertsBackend backend() {
 *     return new MyBackend();
 *   }
 * }
 * }</pre>
 *
 * <p>Each test's name carries the rule it holds (see {@link io.moe4j.api.spi}). Three outcomes:
 * passed; failed, the message beginning with the rule and naming the case; skipped as {@code
 * unsupported}, where {@code isSupportedConfig} refused the case with reasons that say what is
 * wrong. A refusal is never a failure, except that a backend must support something. Without a
 * device of the backend's type everything is skipped.
 *
 * <p>Results are compared with the float64 reference of {@code io.moe4j.reference}. The tolerance
 * follows from the dtypes and the lengths of the sums and cannot be changed. Inputs are put on the
 * device with {@link Device#allocate} and {@link Device#copy}, between guard bands, so the same
 * tests serve any device.
 *
 * <p>Rules that say SHOULD are tests named {@code recommended_...}; a backend that has reasons not
 * to follow one says so in {@link #declined()}.
 */
@TestInstance(TestInstance.Lifecycle.PER_CLASS)
public abstract class ExpertsConformanceTest {
  private @Nullable Kit openKit;

  /** For subclasses. */
  protected ExpertsConformanceTest() {}

  /** {@return the backend under test, a new object each time} */
  protected abstract ExpertsBackend backend();

  /**
   * {@return an open device for the backend; by default the preferred one that a {@link
   * io.moe4j.api.device.DeviceProvider} on the class path opens. Closed after the tests}
   */
  protected Device openDevice() {
    return Devices.open(backend().deviceType());
  }

  /**
   * {@return what adds deltas for a backend that does not fuse them; by default one that computes
   * on the host}
   *
   * @param device the open device
   */
  protected PunicaWrapper punicaWrapper(Device device) {
    return new KitPunicaWrapper(device);
  }

  /**
   * {@return device memory in use, for MOE-5.3. The default, empty, counts what the backend takes
   * through {@link Device#allocate}, which suits backends that accept any {@code Device} object of
   * their type; others know it from their driver}
   */
  protected OptionalLong deviceBytesInUse() {
    return OptionalLong.empty();
  }

  /** {@return recommendations not followed, like {@code "MOE-5.2"}, each with the reason} */
  protected Map<String, String> declined() {
    return Map.of();
  }

  /** Opens the device. */
  @BeforeAll
  public final void openKit() {
    Device device = openDevice();
    openKit = new Kit(backend(), device, punicaWrapper(device));
  }

  /** Closes the device. */
  @AfterAll
  public final void closeKit() {
    if (openKit != null) {
      openKit.close();
    }
  }

  private Kit kit() {
    if (openKit == null) {
      throw new IllegalStateException("the device is not open");
    }
    return openKit;
  }

  private void recommended(String rule) {
    String reason = declined().get(rule);
    if (reason != null) {
      Assumptions.abort("declined " + rule + ": " + reason);
    }
  }

  private Problem problem(MoeConfig config, int tokens) {
    return problem(config, Layout.STACKED, tokens);
  }

  private Problem problem(MoeConfig config, Layout layout, int tokens) {
    MoeConfig own = kit().own(config);
    long seed = config.hashCode();
    return new Problem(own, layout.random(own, new Data(seed)), tokens, seed + 1);
  }

  private Problem problem(Grid.Case c) {
    MoeConfig own = kit().own(c.config());
    return new Problem(own, c.layout().random(own, new Data(1)), c.tokens(), 2, c.preference())
        .output(c.output());
  }

  private void assumeStandard(String why) {
    if (kit().backend.activationFormat() != ActivationFormat.STANDARD) {
      kit().unsupported("FORMAT", why);
    }
  }

  // ---- 1: what a backend says of itself

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

  /** The oracle finds backends by their service file; a missing line is the commonest mistake. */
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
        .filter(ExpertsConformanceTest::takesEveryQuestion)
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

  // ---- 4: LoRA

  private Problem mixed(MoeConfig config, int tokens) {
    Problem p = problem(config, tokens);
    return p.adapters(
        LoraCases.MIXED.slots(p.config, new Data(3), config.weightDtype()),
        3,
        -1,
        0,
        2,
        2,
        5,
        -1,
        4);
  }

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

  // ---- 5: threads, allocation, release

  /**
   * Four threads, one object, batches of different sizes, a workspace each.
   *
   * @param dtypes element types of the tensors
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.Grid#dtypePairs")
  public final void required_MOE_5_1_concurrentCallsDoNotDisturbEachOther(Object dtypes) {
    boolean lora = kit().backend.supportsLora();
    MoeConfig.Builder b = Grid.layer((Grid.Dtypes) dtypes);
    MoeConfig config = lora ? b.lora(new LoraConfig(8, 256)).build() : b.build();
    kit().assumeSupported(config);
    Problem first = problem(config, 33);
    List<Problem> problems = new ArrayList<>(List.of(first));
    for (int tokens : new int[] {1, 5, 64}) {
      Problem p = new Problem(first.config, first.weights, tokens, tokens);
      problems.add(
          lora
              ? p.adapters(
                  LoraCases.MIXED.slots(p.config, new Data(tokens), config.weightDtype()), 0, -1, 2)
              : p);
    }
    Concurrency.run(kit(), problems, 25);
  }

  /**
   * Bytes allocated on the Java heap by a call of 256 tokens, and by one of 64.
   *
   * @param dtypes element types of the tensors
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.Grid#dtypePairs")
  public final void recommended_MOE_5_2_allocationDoesNotGrowWithTokens(Object dtypes) {
    recommended("MOE-5.2");
    MoeConfig config = Grid.layer((Grid.Dtypes) dtypes).build();
    kit().assumeSupported(config);
    long few = Allocation.perCall(kit(), problem(config, 64));
    long many = Allocation.perCall(kit(), problem(config, 256));
    assertTrue(
        many - few <= Allocation.SLACK,
        () ->
            "MOE-5.2: a call of 64 tokens allocates "
                + few
                + " bytes, one of 256 tokens "
                + many
                + "; scratch belongs in the workspace");
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

  /**
   * {@code close()} twice.
   *
   * @param dtypes element types of the tensors
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.Grid#dtypePairs")
  public final void required_MOE_5_3_closeMayBeCalledTwice(Object dtypes) {
    Problem p = problem(Grid.layer((Grid.Dtypes) dtypes).build(), 5);
    kit().assumeSupported(p.config);
    Experts experts = kit().prepare(p);
    try (Harness harness = kit().harness(p, experts)) {
      harness.apply();
    }
    experts.close();
    try {
      experts.close();
    } catch (RuntimeException e) {
      throw new AssertionError("MOE-5.3: the second close() threw", e);
    }
  }

  /**
   * Device memory taken by {@code prepare} and {@code apply} is given back.
   *
   * @param dtypes element types of the tensors
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.Grid#dtypePairs")
  public final void required_MOE_5_3_closeReleasesDeviceMemory(Object dtypes) {
    Problem p = problem(Grid.layer((Grid.Dtypes) dtypes).build(), 5);
    kit().assumeSupported(p.config);
    boolean counted = deviceBytesInUse().isEmpty();
    if (counted && !kit().backend.deviceType().equals(DeviceType.CPU)) {
      Assumptions.abort("override deviceBytesInUse() to test this on " + kit().device.info().id());
    }
    var counting = new CountingDevice(kit().device);
    long before = counted ? counting.bytesInUse() : deviceBytesInUse().orElseThrow();
    try (Experts experts = kit().prepare(p, counted ? counting : kit().device);
        Harness harness = kit().harness(p, experts)) {
      harness.apply();
    }
    long after = counted ? counting.bytesInUse() : deviceBytesInUse().orElseThrow();
    assertEquals(before, after, "MOE-5.3: bytes of device memory in use before and after");
  }

  /**
   * The same call three times.
   *
   * @param dtypes element types of the tensors
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.Grid#dtypePairs")
  public final void recommended_MOE_5_4_equalCallsGiveEqualBits(Object dtypes) {
    recommended("MOE-5.4");
    Problem p = problem(Grid.layer((Grid.Dtypes) dtypes).build(), 70);
    kit().assumeSupported(p.config);
    try (Experts experts = kit().prepare(p);
        Harness harness = kit().harness(p, experts)) {
      harness.apply();
      byte[] first = harness.outputBytes();
      for (int n = 0; n < 3; n++) {
        harness.apply();
        assertArrayEquals(first, harness.outputBytes(), "MOE-5.4: equal calls differ");
      }
    }
  }

  /**
   * With {@code batchInvariant}: each token alone gives the bits it has in a batch.
   *
   * @param dtypes element types of the tensors
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.Grid#dtypePairs")
  public final void required_MOE_5_4_batchInvarianceIsBitExact(Object dtypes) {
    assumeStandard("a row of batched experts is not a token");
    MoeConfig config = Grid.layer((Grid.Dtypes) dtypes).batchInvariant(true).build();
    kit().assumeSupported(config);
    Problem batch = problem(config, 70);
    try (Experts experts = kit().prepare(batch)) {
      double[][] together = run(batch, experts);
      for (int t = 0; t < batch.tokens; t++) {
        double[] alone = run(batch.only(t), experts)[0];
        int token = t;
        assertArrayEquals(
            together[t], alone, () -> "MOE-5.4: token " + token + " alone and in a batch of 70");
      }
    }
  }

  private double[][] run(Problem problem, Experts experts) {
    try (Harness harness = kit().harness(problem, experts)) {
      harness.apply();
      return harness.result();
    }
  }
}
