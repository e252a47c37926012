package io.moe4j.cuda;

/**
 * A version of the PTX instruction set. A driver compiles PTX up to its own version.
 *
 * @param major like 9 in 9.0
 * @param minor like 0 in 9.0
 */
public record PtxVersion(int major, int minor) implements Comparable<PtxVersion> {
  @Override
  public int compareTo(PtxVersion o) {
    return major != o.major ? Integer.compare(major, o.major) : Integer.compare(minor, o.minor);
  }

  /**
   * Reads {@code 8.7}.
   *
   * @param text major and minor
   * @return the version
   * @throws IllegalArgumentException if it is not two numbers
   */
  public static PtxVersion parse(String text) {
    int dot = text.indexOf('.');
    try {
      return new PtxVersion(
          Integer.parseInt(text, 0, dot, 10), Integer.parseInt(text, dot + 1, text.length(), 10));
    } catch (IndexOutOfBoundsException | NumberFormatException e) {
      throw new IllegalArgumentException("PTX version is \"" + text + "\", must be like 8.7", e);
    }
  }

  /**
   * The newest PTX a driver compiles, by the table in NVIDIA's PTX ISA manual, "Release Notes".
   *
   * @param cudaVersion what {@code cuDriverGetVersion} says, like 12080 for CUDA 12.8
   * @return the version; for releases after the table, one step a release (a lower bound)
   */
  public static PtxVersion ofDriver(int cudaVersion) {
    int major = cudaVersion / 1000;
    int minor = cudaVersion % 1000 / 10;
    return switch (major) {
      case 11 -> new PtxVersion(7, minor);
      case 12 -> new PtxVersion(8, minor <= 5 ? minor : minor - 1);
      default -> major < 11 ? new PtxVersion(6, 0) : new PtxVersion(major - 4, minor);
    };
  }

  /** {@return the oldest driver branch known to compile this version, for messages} */
  public String driverHint() {
    if (compareTo(new PtxVersion(9, 0)) >= 0) {
      return major == 9 && minor == 0 ? "580 (CUDA 13.0)" : "newer than 580 (CUDA 13.0)";
    }
    if (compareTo(new PtxVersion(8, 7)) >= 0) {
      return minor == 7 ? "570 (CUDA 12.8)" : "575 (CUDA 12.9)";
    }
    return compareTo(new PtxVersion(8, 0)) >= 0 ? "525 to 565 (CUDA 12)" : "450 (CUDA 11)";
  }

  /**
   * Like {@code 8.7}.
   *
   * @return major and minor
   */
  @Override
  public String toString() {
    return major + "." + minor;
  }
}
