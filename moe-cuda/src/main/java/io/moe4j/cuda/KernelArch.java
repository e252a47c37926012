package io.moe4j.cuda;

import io.moe4j.api.platform.ComputeCapability;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * The target PTX was compiled for, like {@code sm_80} or {@code sm_90a}, and which cards run it:
 *
 * <table>
 * <caption>Reach</caption>
 * <tr><th>target</th><th>runs on</th></tr>
 * <tr><td>{@code sm_80}</td><td>8.0 and every later capability</td></tr>
 * <tr><td>{@code sm_100f}</td><td>10.0 and later 10.x</td></tr>
 * <tr><td>{@code sm_90a}</td><td>9.0 only</td></tr>
 * </table>
 *
 * @param capability the capability in the name
 * @param suffix empty, {@code a} (that architecture alone) or {@code f} (its family)
 */
public record KernelArch(ComputeCapability capability, String suffix)
    implements Comparable<KernelArch> {
  private static final Pattern NAME = Pattern.compile("sm_(\\d{1,3})(\\d)([af]?)");

  /**
   * Reads {@code sm_90a}.
   *
   * @param name the target's name
   * @return the target
   * @throws IllegalArgumentException if it is none
   */
  public static KernelArch parse(String name) {
    Matcher m = NAME.matcher(name);
    if (!m.matches()) {
      throw new IllegalArgumentException(
          "architecture is \"" + name + "\", must be like sm_80, sm_90a or sm_100f");
    }
    return new KernelArch(
        new ComputeCapability(Integer.parseInt(m.group(1)), Integer.parseInt(m.group(2))),
        m.group(3));
  }

  /**
   * {@return whether a card can run it}
   *
   * @param card its capability
   */
  public boolean runsOn(ComputeCapability card) {
    return switch (suffix) {
      case "a" -> card.equals(capability);
      case "f" -> card.major() == capability.major() && card.compareTo(capability) >= 0;
      default -> card.compareTo(capability) >= 0;
    };
  }

  /** Larger is the better fit among those that run: later capability, then the narrower reach. */
  @Override
  public int compareTo(KernelArch o) {
    int c = capability.compareTo(o.capability);
    return c != 0 ? c : Integer.compare(narrowness(), o.narrowness());
  }

  private int narrowness() {
    return suffix.equals("a") ? 2 : suffix.equals("f") ? 1 : 0;
  }

  /**
   * Like {@code sm_90a}.
   *
   * @return the name
   */
  @Override
  public String toString() {
    return "sm_" + capability.major() + capability.minor() + suffix;
  }
}
