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

  static List<String> paths() {
    return PATHS;
  }

  @AfterEach
  void forget() {
    System.clearProperty(NATIVE);
    System.clearProperty(SCALAR);
  }

  /** {@return what the backend says of itself; skips the test where the machine lacks the path} */
  private static String force(String path) {
    if (path.equals("scalar")) {
      System.setProperty(SCALAR, "true");
    } else {
      System.setProperty(NATIVE, path.equals("vector") ? "off" : path);
    }
    String description = new CpuExpertsBackend().description();
    boolean java = path.equals("vector") || path.equals("scalar");
    assumeTrue(
        java || description.contains("C kernels"), () -> "kernels " + path + ": " + description);
    return description;
  }

  @ParameterizedTest
  @MethodSource("paths")
  void theBackendSaysWhatItRuns(String path) {
    String description = force(path);
    switch (path) {
      case "vector" -> assertThat(description).contains("Vector API").doesNotContain("C kernels");
      case "scalar" -> assertThat(description).contains("scalar").doesNotContain("C kernels");
      default ->
          assertThat(description.toLowerCase(java.util.Locale.ROOT).replaceAll("[- ]", ""))
              .contains("ckernels," + path);
    }
  }

  @ParameterizedTest
  @MethodSource("paths")
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
  @MethodSource("paths")
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
    Events events =
        EngineTestKit.engine("junit-jupiter").selectors(tests).execute().testEvents();
    System.out.printf(
        "kernels %s: %d tests of the kit passed, %d refused or skipped%n",
        path, events.succeeded().count(), events.aborted().count());
    events.failed().stream().forEach(e -> System.out.println(e.getPayload()));
    events.assertStatistics(s -> s.failed(0));
    assertThat(events.succeeded().count()).isGreaterThan(100);
  }

  private static DiscoverySelector selector(Method m, int[] share) {
    boolean cases = m.getParameterCount() > 0;
    return cases
        ? selectIteration(selectMethod(Subject.class, m), share)
        : selectMethod(Subject.class, m);
  }

  /** Eight threads of forwards while adapters come and go. */
  @ParameterizedTest
  @MethodSource("paths")
  void soak(String path) throws Exception {
    force(path);
    new SoakTest().churn(FULL ? 10 : 1);
  }
}
