package io.moe4j.backend.cpu.options;

import io.moe4j.api.config.BackendOptions;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * Settings of {@code cpu} for one layer, given with {@code MoeConfig.Builder.options}. They hold
 * for its router and shared expert, too. Immutable; two with the same settings are equal. What
 * system properties say ({@link CpuProperties}) is for layers without options of their own.
 *
 * @since 0.2.0
 */
public final class CpuOptions implements BackendOptions {
  /** The largest number of threads. Beyond this, threads cost more than they compute. */
  public static final int MAX_THREADS = 1024;

  /** The machine's fastest kernels, packed weights where they fit, a thread for each processor. */
  public static final CpuOptions DEFAULT =
      new CpuOptions(CpuKernels.AUTO, PackPolicy.AUTO, ActivationPolicy.UNQUANTISED, 0, false);

  private final CpuKernels kernels;
  private final PackPolicy pack;
  private final ActivationPolicy activations;
  private final int threads;
  private final boolean pinned;

  private CpuOptions(
      CpuKernels kernels,
      PackPolicy pack,
      ActivationPolicy activations,
      int threads,
      boolean pinned) {
    this.kernels = Objects.requireNonNull(kernels, "kernels");
    this.pack = Objects.requireNonNull(pack, "pack");
    this.activations = Objects.requireNonNull(activations, "activations");
    this.threads = threads;
    this.pinned = pinned;
  }

  @Override
  public String backend() {
    return "cpu";
  }

  /** {@return which kernels compute} */
  public CpuKernels kernels() {
    return kernels;
  }

  /**
   * {@return the same with other kernels}
   *
   * @param which which kernels compute
   */
  public CpuOptions withKernels(CpuKernels which) {
    return new CpuOptions(which, pack, activations, threads, pinned);
  }

  /** {@return whether weights are laid out anew for the kernels in C} */
  public PackPolicy pack() {
    return pack;
  }

  /**
   * {@return the same with another policy of packing}
   *
   * @param policy whether weights are laid out anew
   */
  public CpuOptions withPack(PackPolicy policy) {
    return new CpuOptions(kernels, policy, activations, threads, pinned);
  }

  /** {@return whether activations may be quantised} */
  public ActivationPolicy activations() {
    return activations;
  }

  /**
   * {@return the same with activations quantised or not}
   *
   * @param policy whether they may be quantised
   */
  public CpuOptions withActivations(ActivationPolicy policy) {
    return new CpuOptions(kernels, pack, policy, threads, pinned);
  }

  /** {@return how many threads compute, the caller's included; 0 = as many as processors} */
  public int threads() {
    return threads;
  }

  /**
   * {@return the same with another number of threads} Layers with equal numbers, equally pinned,
   * share a team, of which a forward takes all; forwards of two teams at once have more threads
   * than either says. A team's threads sleep when there is nothing to do, and stay as long as the
   * JVM.
   *
   * @param number 1 to {@value #MAX_THREADS}, or 0 for as many as the JVM has processors
   * @throws IllegalArgumentException if there cannot be so many
   */
  public CpuOptions withThreads(int number) {
    if (number < 0 || number > MAX_THREADS) {
      throw new IllegalArgumentException(
          "threads is "
              + number
              + ", must be 1.."
              + MAX_THREADS
              + ", or 0 for as many as there are processors");
    }
    return new CpuOptions(kernels, pack, activations, number, pinned);
  }

  /** {@return whether each worker stays on a processor of its own} */
  public boolean pinned() {
    return pinned;
  }

  /**
   * {@return the same with threads pinned or not} Workers are pinned, those of one NUMA node first;
   * on several nodes weights are packed near to who reads them. The caller's thread stays the
   * caller's. Linux; elsewhere it changes nothing.
   *
   * @param pinThreads whether each worker stays on a processor of its own
   */
  public CpuOptions withPinned(boolean pinThreads) {
    return new CpuOptions(kernels, pack, activations, threads, pinThreads);
  }

  @Override
  public boolean equals(@Nullable Object o) {
    return o instanceof CpuOptions c
        && c.kernels == kernels
        && c.pack == pack
        && c.activations == activations
        && c.threads == threads
        && c.pinned == pinned;
  }

  @Override
  public int hashCode() {
    return Objects.hash(kernels, pack, activations, threads, pinned);
  }

  /**
   * Like {@code cpu(kernels auto, pack auto, activations unquantised, threads auto)}.
   *
   * @return the settings
   */
  @Override
  public String toString() {
    return "cpu(kernels "
        + kernels.text()
        + ", pack "
        + pack.text()
        + ", activations "
        + activations.text()
        + ", threads "
        + (threads == 0 ? "auto" : Integer.toString(threads))
        + (pinned ? ", pinned)" : ")");
  }
}
