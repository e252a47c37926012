package io.moe4j.tck;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.Experts;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.api.spi.MonolithicExperts;
import io.moe4j.api.spi.Support;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Assumptions;

/**
 * A backend on an open device: asks, prepares, runs, compares. Its failures begin with the rule.
 */
final class Kit implements AutoCloseable {
  final ExpertsBackend backend;
  final Device device;
  final Platform platform;
  private final PunicaWrapper wrapper;
  private final Skipped skipped = new Skipped();
  private final Set<Support.Reason> bad = new HashSet<>();
  private @Nullable Boolean monolithic;

  Kit(ExpertsBackend backend, Device device, PunicaWrapper wrapper) {
    this.backend = backend;
    this.device = device;
    this.wrapper = wrapper;
    this.platform = Platform.of(device.info());
  }

  /** {@return the config in the backend's activation format} */
  MoeConfig own(MoeConfig config) {
    return config.toBuilder().activationFormat(backend.activationFormat()).build();
  }

  /** {@return the backend's answer; fails if there is none (MOE-1.1)} */
  Support ask(MoeConfig config, Platform machine) {
    Support support;
    try {
      support = backend.isSupportedConfig(config, machine);
    } catch (RuntimeException | LinkageError e) {
      throw new AssertionError(
          "MOE-1.1: isSupportedConfig threw for " + Problem.describe(config) + " on " + machine, e);
    }
    if (support == null) {
      throw new AssertionError(
          "MOE-1.1: isSupportedConfig returned null for " + Problem.describe(config));
    }
    return support;
  }

  /** {@return whether it could; a bad refusal fails (MOE-1.2)} */
  boolean supports(MoeConfig config) {
    Support support = ask(own(config), platform);
    requireReadable(config, support);
    return support.isSupported() && (config.lora().isEmpty() || backend.supportsLora());
  }

  /** Each bad reason fails one test: a hundred more would hide what else is wrong. */
  private void requireReadable(MoeConfig config, Support support) {
    for (Support.Reason reason : support.reasons()) {
      // The same words may name a value of one config and none of another.
      if (!Refusals.isReadable(config, platform, reason) && bad.add(reason)) {
        throw Refusals.unreadable(config, reason);
      }
    }
  }

  /** Goes on only if it could: what is refused with good reasons is neither passed nor failed. */
  void assumeSupported(MoeConfig config) {
    if (config.lora().isPresent() && !backend.supportsLora()) {
      unsupported("LORA", backend.name() + " does not take LoRA");
    }
    Support support = ask(own(config), platform);
    requireReadable(config, support);
    if (!support.isSupported()) {
      unsupported(support.reasons().getFirst().code().toString(), support.toString());
    }
  }

  /** Ends a test that says nothing about this backend, and counts it. */
  void unsupported(String code, String why) {
    skipped.add(code, why);
    Assumptions.abort("unsupported: " + why);
  }

  /** {@return whether the experts route by themselves; false if it supports nothing} */
  boolean isMonolithic(List<MoeConfig> candidates) {
    if (monolithic == null) {
      monolithic = false;
      for (MoeConfig config : candidates) {
        if (supports(config)) {
          Layout layout = Layout.STACKED;
          MoeConfig own = own(config);
          Problem problem = new Problem(own, layout.random(own, new Data(1)), 1, 1);
          try (Experts experts = prepare(problem)) {
            monolithic = experts instanceof MonolithicExperts;
          }
          break;
        }
      }
    }
    return monolithic;
  }

  Experts prepare(Problem problem) {
    return prepare(problem, device);
  }

  Experts prepare(Problem problem, Device on) {
    try {
      return backend.prepare(problem.config, problem.weights, on);
    } catch (RuntimeException e) {
      throw new AssertionError("MOE-1.3: said yes to " + problem + ", then prepare threw " + e, e);
    }
  }

  Harness harness(Problem problem, Experts experts) {
    if (problem.handRouted && experts instanceof MonolithicExperts) {
      unsupported("ROUTING", "monolithic experts route by themselves");
    }
    return new Harness(device, wrapper, problem, experts);
  }

  /** Prepares, runs once and compares with the truth. */
  void verify(String rule, Problem problem) {
    verify(rule, problem, 0);
  }

  /**
   * @param more tolerance on top of the experts' own, for what is done in front of them
   */
  void verify(String rule, Problem problem, double more) {
    assumeSupported(problem.config);
    double[][] truth = problem.truth(backend.activationFormat());
    try (Experts experts = prepare(problem);
        Harness harness = harness(problem, experts)) {
      apply(rule, problem, harness);
      Compare.rows(rule, problem.toString(), truth, harness.result(), problem.tolerance() + more);
      harness.requireNothingElseWritten();
    }
  }

  static void apply(String rule, Problem problem, Harness harness) {
    try {
      harness.apply();
    } catch (RuntimeException e) {
      throw new AssertionError(rule + ": apply threw " + e + " for " + problem, e);
    }
  }

  @Override
  public void close() {
    skipped.print(backend.name());
    device.close();
  }
}
