package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;
import static org.junit.platform.engine.discovery.DiscoverySelectors.selectIteration;
import static org.junit.platform.engine.discovery.DiscoverySelectors.selectMethod;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.backend.cpu.CpuBlockOpsProvider;
import io.moe4j.backend.cpu.CpuDeviceProvider;
import io.moe4j.backend.cpu.CpuExpertsBackend;
import io.moe4j.oracle.BackendCatalog;
import io.moe4j.oracle.MoeLayer;
import io.moe4j.oracle.MoeOracle;
import io.moe4j.tck.ExpertsConformanceTest;
import java.lang.reflect.Method;
import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.platform.engine.DiscoverySelector;
import org.junit.platform.testkit.engine.EngineTestKit;
import org.junit.platform.testkit.engine.Events;

/**
 * The CPU backend with each set of kernels, forced by its property: what was recorded of models
 * plain and in the codes of every family, the conformance kit (what it asks of hostile inputs
 * included), and a soak. A set that the machine lacks is skipped by name.
 *
 * <p>The set that the machine takes by itself has all of that in {@link GoldenTest}, {@link
 * CpuBackendConformanceTest} and {@link SoakTest}. Here each has a part, so that all together take
 * seconds: eight models, every case of the kit that no case is repeated for, of the others each
 * path a different share. {@code -Dmoe.paths.full=true} is for everything on every path.
 *
 * <p>Equal bits for any number of threads are tested in backend-cpu, where teams can be made.
 */
class ForcedPathsTest {
  private static final String NATIVE = "moe4j.cpu.native";
  private static final String SCALAR = "moe4j.cpu.scalar";
  private static final List<String> PATHS =
      List.of("amx", "avx512bf16", "avx512", "avx2", "neonbf16", "neon", "vector", "scalar");
  private static final boolean FULL = Boolean.getBoolean("moe.paths.full");

  private static final List<String> MODELS =
      List.of(
          "fixtures/olmoe",
          "fixtures/gpt_oss",
          "fixtures/deepseek_v3",
          "quantised/awq4_g64",
          "quantised/gptq4_asym_desc_g32",
          "quantised/fp8_block128",
          "quantised/nvfp4_ct",
          "families/gpt_oss_mxfp4");

  /** A path takes one in so many cases of a test of the kit, unless it has fewer cases. */
  private static final int SHARE = 8;

  /** More than any test of the kit has. */
  private static final int MOST_CASES = 1000;

  static List<String> all() {
    return PATHS;
  }

  /** {@return the paths that this machine has, but does not take by itself} */
  static List<String> others() {
    String own = new CpuExpertsBackend().description();
    List<String> here =
        PATHS.stream()
            .filter(ForcedPathsTest::isHere)
            .filter(p -> !description(p).equals(own))
            .toList();
    assertThat(here).contains("scalar");
    return here;
  }

  @AfterEach
  void forget() {
    System.clearProperty(NATIVE);
    System.clearProperty(SCALAR);
  }

  private static void force(String path) {
    if (path.equals("scalar")) {
      System.setProperty(SCALAR, "true");
    } else {
      System.setProperty(NATIVE, path.equals("vector") ? "off" : path);
    }
  }

  private static String description(String path) {
    force(path);
    try {
      return new CpuExpertsBackend().description();
    } finally {
      System.clearProperty(NATIVE);
      System.clearProperty(SCALAR);
    }
  }

  private static boolean isHere(String path) {
    boolean java = path.equals("vector") || path.equals("scalar");
    return java || description(path).contains("C kernels");
  }

  /** Those that the machine lacks are skipped here, by name. */
  @ParameterizedTest
  @MethodSource("all")
  void theBackendSaysWhatItRuns(String path) {
    String description = description(path);
    assumeTrue(isHere(path), () -> "kernels " + path + ": " + description);
    switch (path) {
      case "vector" -> assertThat(description).contains("Vector API").doesNotContain("C kernels");
      case "scalar" -> assertThat(description).contains("scalar").doesNotContain("C kernels");
      default ->
          assertThat(description.toLowerCase(java.util.Locale.ROOT).replaceAll("[- ]", ""))
              .contains("ckernels," + path);
    }
  }

  @ParameterizedTest
  @MethodSource("others")
  void recordedOutputs(String path) {
    force(path);
    for (String name : FULL ? Fixture.names() : MODELS) {
      check(name, path);
    }
  }

  private static void check(String name, String path) {
    try (Fixture fixture = Fixture.open(name);
        MoeOracle oracle =
            MoeOracle.of(
                BackendCatalog.of(
                    List.of(new CpuExpertsBackend()),
                    List.of(new CpuDeviceProvider()),
                    List.of(new CpuBlockOpsProvider())))) {
      assertThat(fixture.checkpoint.layers()).isNotEmpty();
      int index = fixture.checkpoint.layers().getLast();
      MoeConfig config = fixture.config(index);
      try (MoeLayer layer =
          MoeLayer.builder(config, fixture.checkpoint.weights(index)).oracle(oracle).build()) {
        LayerCheck.exact(fixture, index, path + ", " + name).all(layer);
      }
    }
  }

  /** The kit on whatever is forced; run by the engine below, not by the build. */
  static final class Subject extends ExpertsConformanceTest {
    @Override
    protected ExpertsBackend backend() {
      if (System.getProperty(NATIVE) == null && System.getProperty(SCALAR) == null) {
        return Assumptions.abort("a part of ForcedPathsTest");
      }
      return new CpuExpertsBackend();
    }
  }

  @ParameterizedTest
  @MethodSource("others")
  void theKit(String path) {
    force(path);
    int[] share =
        IntStream.range(0, MOST_CASES)
            .filter(n -> FULL || n < 3 || n % SHARE == PATHS.indexOf(path))
            .toArray();
    DiscoverySelector[] tests =
        Arrays.stream(ExpertsConformanceTest.class.getMethods())
            .filter(m -> m.getName().startsWith("required_") || m.getName().startsWith("recomm"))
            .map(m -> selector(m, share))
            .toArray(DiscoverySelector[]::new);
    Events events = EngineTestKit.engine("junit-jupiter").selectors(tests).execute().testEvents();
    System.out.printf(
        "kernels %s: %d tests of the kit passed, %d refused or skipped%n",
        path, events.succeeded().count(), events.aborted().count());
    events.failed().stream().forEach(e -> System.out.println(e.getPayload()));
    events.assertStatistics(s -> s.failed(0));
    assertThat(events.succeeded().count()).isGreaterThan(100);
  }

  private static DiscoverySelector selector(Method m, int[] share) {
    DiscoverySelector all = selectMethod(Subject.class, m);
    if (m.getParameterCount() == 0) {
      return all;
    }
    // one pair of dtypes is enough for what waits for the compiler
    boolean slow = m.getName().contains("_5_2_") && !FULL;
    return selectIteration(all, slow ? new int[1] : share);
  }

  /** Eight threads of forwards while adapters come and go. */
  @ParameterizedTest
  @MethodSource("others")
  void soak(String path) throws Exception {
    force(path);
    new SoakTest().churn(FULL ? 10 : 1);
  }
}
