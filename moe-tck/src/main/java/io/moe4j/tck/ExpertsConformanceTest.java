package io.moe4j.tck;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.spi.Experts;
import io.moe4j.api.spi.ExpertsBackend;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Assumptions;
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
public abstract class ExpertsConformanceTest extends ExpertsLoraAndWeightTests {
  /** For subclasses. */
  protected ExpertsConformanceTest() {}

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
                + "; scratch belongs in the workspace, and Tensor.get, set and views may allocate, too."
                + " A backend that has reasons not to follow this names MOE-5.2 in declined()");
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
