package io.moe4j.checkpoint;

import io.moe4j.checkpoint.AdapterPolicy.FusedSide;
import java.util.EnumSet;
import java.util.Optional;
import java.util.Set;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * Which side of a stored fused parameter A covers, by the PEFT version that wrote the file: up to
 * 0.18 always dimension 1; 0.19.0 alone dimension 2 for classes that say {@code is_transposed},
 * else dimension 1; from 0.19.1 on the other way round.
 */
final class PeftVersions {
  private static final Pattern VERSION =
      Pattern.compile("(\\d{1,4})\\.(\\d{1,4})(?:\\.(\\d{1,4}))?(.*)");

  private enum Era {
    UP_TO_0_18,
    ONLY_0_19_0,
    FROM_0_19_1
  }

  private PeftVersions() {}

  /**
   * The sides that are possible.
   *
   * @param version peft_version of adapter_config.json; absent in files of 0.17 and before, and in
   *     files that PEFT did not write
   * @param isTransposed whether the class says is_transposed
   * @return one side where the version settles it, else both
   */
  static Set<FusedSide> sides(Optional<String> version, boolean isTransposed) {
    Set<FusedSide> sides = EnumSet.noneOf(FusedSide.class);
    for (Era era : eras(version)) {
      sides.add(side(era, isTransposed));
    }
    return sides;
  }

  private static FusedSide side(Era era, boolean isTransposed) {
    return switch (era) {
      case UP_TO_0_18 -> FusedSide.DIM1;
      case ONLY_0_19_0 -> isTransposed ? FusedSide.DIM2 : FusedSide.DIM1;
      case FROM_0_19_1 -> isTransposed ? FusedSide.DIM1 : FusedSide.DIM2;
    };
  }

  private static Set<Era> eras(Optional<String> version) {
    Matcher m = VERSION.matcher(version.orElse(""));
    if (!m.matches()) {
      // Either old, or written by another program that follows a PEFT of today.
      return EnumSet.of(Era.UP_TO_0_18, Era.FROM_0_19_1);
    }
    long number =
        Long.parseLong(m.group(1)) * 100_000_000L
            + Long.parseLong(m.group(2)) * 10_000L
            + (m.group(3) == null ? 0 : Long.parseLong(m.group(3)));
    boolean development = m.group(4).contains("dev");
    long v0190 = 19 * 10_000L;
    if (development && number >= v0190 && number <= 20 * 10_000L) {
      // A checkout between releases: any of the rules may have been in it.
      return EnumSet.allOf(Era.class);
    }
    return EnumSet.of(
        number < v0190 ? Era.UP_TO_0_18 : number == v0190 ? Era.ONLY_0_19_0 : Era.FROM_0_19_1);
  }
}
