package io.moe4j.backend.flashinfer;

import io.moe4j.api.config.BackendOptions;
import java.nio.file.Path;
import java.util.Objects;
import java.util.Optional;
import org.jspecify.annotations.Nullable;

/**
 * Settings of {@code flashinfer-cutlass} and {@code flashinfer-trtllm} for one layer, given with
 * {@code MoeConfig.Builder.options}. Immutable; two with the same settings are equal.
 *
 * @since 0.2.0
 */
public final class FlashInferOptions implements BackendOptions {
  /** How many forwards of a layer are kept recorded, unless said otherwise. */
  public static final int REPLAYS = 32;

  /** FlashInfer where it is found, sums apart, {@value #REPLAYS} replays. */
  public static final FlashInferOptions DEFAULT = new FlashInferOptions(null, null, false, REPLAYS);

  private final @Nullable Path path;
  private final @Nullable String version;
  private final boolean fusedFinalize;
  private final int replays;

  private FlashInferOptions(
      @Nullable Path path, @Nullable String version, boolean fusedFinalize, int replays) {
    if (replays < 0) {
      throw new IllegalArgumentException("replays is " + replays + ", must not be negative");
    }
    this.path = path;
    this.version = version;
    this.fusedFinalize = fusedFinalize;
    this.replays = replays;
  }

  @Override
  public String backend() {
    return "flashinfer";
  }

  /** {@return where FlashInfer is looked for; empty = in the usual places} */
  public Optional<Path> path() {
    return Optional.ofNullable(path);
  }

  /** {@return the version of what {@link #path} names, where its surroundings do not tell} */
  public Optional<String> version() {
    return Optional.ofNullable(version);
  }

  /** {@return whether the weighted sum may be made inside the second product, with atomics} */
  public boolean fusedFinalize() {
    return fusedFinalize;
  }

  /** {@return how many forwards of the layer are kept recorded, 0 = none} */
  public int replays() {
    return replays;
  }

  /**
   * {@return the same with FlashInfer elsewhere}
   *
   * @param path a module's file, a folder of modules, or a folder of Python packages; nothing else
   *     is looked at then
   */
  public FlashInferOptions withPath(Path path) {
    return new FlashInferOptions(
        path.toAbsolutePath().normalize(), version, fusedFinalize, replays);
  }

  /**
   * {@return the same with a version}
   *
   * @param version of what {@link #path} names, like {@code 0.6.18}
   */
  public FlashInferOptions withVersion(String version) {
    return new FlashInferOptions(
        path, Objects.requireNonNull(version, "version"), fusedFinalize, replays);
  }

  /**
   * {@return the same with sums fused or apart}
   *
   * @param allowed whether they may be fused: then equal calls give unequal bits, and large batches
   *     take less time
   */
  public FlashInferOptions withFusedFinalize(boolean allowed) {
    return new FlashInferOptions(path, version, allowed, replays);
  }

  /**
   * {@return the same with another number of replays}
   *
   * @param kept how many forwards of the layer are kept recorded, 0 = none
   * @throws IllegalArgumentException if it is negative
   */
  public FlashInferOptions withReplays(int kept) {
    return new FlashInferOptions(path, version, fusedFinalize, kept);
  }

  @Override
  public boolean equals(@Nullable Object o) {
    return o instanceof FlashInferOptions f
        && Objects.equals(path, f.path)
        && Objects.equals(version, f.version)
        && fusedFinalize == f.fusedFinalize
        && replays == f.replays;
  }

  @Override
  public int hashCode() {
    return Objects.hash(path, version, fusedFinalize, replays);
  }

  /**
   * Like {@code flashinfer(sums apart, 32 replays)}.
   *
   * @return the settings
   */
  @Override
  public String toString() {
    return "flashinfer("
        + (path == null ? "" : path + (version == null ? ", " : " of " + version + ", "))
        + (fusedFinalize ? "sums fused, " : "sums apart, ")
        + replays
        + " replays)";
  }
}
