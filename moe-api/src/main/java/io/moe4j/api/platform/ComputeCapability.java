package io.moe4j.api.platform;

/**
 * A CUDA compute capability.
 *
 * @param major like 9 in 9.0
 * @param minor like 0 in 9.0
 * @since 0.1.0
 */
public record ComputeCapability(int major, int minor) implements Comparable<ComputeCapability> {
  @Override
  public int compareTo(ComputeCapability o) {
    return major != o.major ? Integer.compare(major, o.major) : Integer.compare(minor, o.minor);
  }

  /**
   * {@return whether this is at least {@code major.minor}}
   *
   * @param major like 8
   * @param minor like 0
   */
  public boolean atLeast(int major, int minor) {
    return compareTo(new ComputeCapability(major, minor)) >= 0;
  }

  /**
   * Like {@code 9.0}.
   *
   * @return major and minor
   */
  @Override
  public String toString() {
    return major + "." + minor;
  }
}
