package io.moe4j.oracle;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.platform.DeviceType;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.stream.Stream;

/**
 * Which of this project's jars is for such weights on a GPU that is there, where none of those on
 * the class path computes the layer. It can still refuse the layer for something else. Other
 * people's plugins are not known here.
 */
final class ServingJars {
  private ServingJars() {}

  /** {@return sentences for the table, none where a GPU is used, or there is none} */
  static List<String> missing(Selection s) {
    boolean gpu = s.platform().device(DeviceType.CUDA).isPresent();
    boolean used =
        s.supported().stream().anyMatch(c -> c.backend().deviceType().equals(DeviceType.CUDA));
    if (!gpu || used || s.isExplicit()) {
      return List.of();
    }
    MoeConfig c = s.config();
    List<String> all = new ArrayList<>();
    if (isPacked(c) && isAbsent(s, "marlin")) {
      all.add(
          "backend-marlin, which is not on the class path, keeps such weights packed on NVIDIA GPUs");
    }
    boolean mxfp4 = c.uniformScheme().equals(Optional.of(QuantScheme.MXFP4));
    if ((!c.isQuantized() || mxfp4) && isAbsent(s, "triton")) {
      all.add(
          "backend-triton, which is not on the class path, computes such weights on NVIDIA GPUs");
    }
    return all;
  }

  private static boolean isPacked(MoeConfig c) {
    return Stream.of(c.uniformW13Scheme(), c.uniformW2Scheme())
        .allMatch(q -> q.isPresent() && !q.get().isNone() && q.get().activations().isNone());
  }

  /** A jar that is there and broken has a row of its own. */
  private static boolean isAbsent(Selection s, String family) {
    return s.candidates().stream().noneMatch(c -> c.name().endsWith(family))
        && s.failures().stream().noneMatch(f -> f.name().contains(family));
  }
}
