package io.moe4j.tck;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.spi.ExpertsBackend;
import java.util.Map;
import java.util.OptionalLong;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.TestInstance;

/** The backend that {@link ExpertsConformanceTest} is about, its device, and problems for it. */
@TestInstance(TestInstance.Lifecycle.PER_CLASS)
abstract class ExpertsSubject {
  private @Nullable Kit openKit;

  ExpertsSubject() {}

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

  final Kit kit() {
    if (openKit == null) {
      throw new IllegalStateException("the device is not open");
    }
    return openKit;
  }

  final void recommended(String rule) {
    String reason = declined().get(rule);
    if (reason != null) {
      Assumptions.abort("declined " + rule + ": " + reason);
    }
  }

  final Problem problem(MoeConfig config, int tokens) {
    return problem(config, Layout.STACKED, tokens);
  }

  final Problem problem(MoeConfig config, Layout layout, int tokens) {
    MoeConfig own = kit().own(config);
    long seed = config.hashCode();
    return new Problem(own, layout.random(own, new Data(seed)), tokens, seed + 1);
  }

  final Problem problem(Grid.Case c) {
    MoeConfig own = kit().own(c.config());
    return new Problem(own, c.layout().random(own, new Data(1)), c.tokens(), 2, c.preference())
        .output(c.output());
  }

  final void assumeStandard(String why) {
    if (kit().backend.activationFormat() != ActivationFormat.STANDARD) {
      kit().unsupported("FORMAT", why);
    }
  }

  final Problem mixed(MoeConfig config, int tokens) {
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
}
