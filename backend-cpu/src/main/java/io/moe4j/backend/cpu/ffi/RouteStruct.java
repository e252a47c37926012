package io.moe4j.backend.cpu.ffi;

import io.moe4j.api.config.RoutingConfig;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Optional;

/** The {@code struct moe_route} of moe.h: how tokens choose their experts. */
public final class RouteStruct {
  /** Its bytes. */
  static final long BYTES = 80;

  /** Experts at most. */
  private static final int MOST_EXPERTS = 1024;

  private RouteStruct() {}

  /**
   * {@return the struct of a config, empty where the kernels in C do not know how: ids by token,
   * sparse mixing, more than 1024 choices}
   *
   * @param config how tokens choose
   * @param choices experts, zero experts included
   * @param topK how many a token has
   * @param arena where it goes
   */
  public static Optional<MemorySegment> of(
      RoutingConfig config, int choices, int topK, Arena arena) {
    int scoring =
        switch (config.scoring()) {
          case SOFTMAX -> 0;
          case SOFTMAX_TOPK -> 1;
          case SIGMOID -> 2;
          case SQRT_SOFTPLUS -> 3;
          case SPARSE_MIXER -> -1;
        };
    int groups = config.numGroups();
    if (scoring < 0
        || config.byTokenId()
        || choices > MOST_EXPERTS
        || topK > choices
        || groups > choices
        || choices % groups != 0
        || config.topkGroups() > groups
        || choices / groups * config.topkGroups() < topK && groups > 1) {
      return Optional.empty();
    }
    boolean two = config.groupScore() == RoutingConfig.GroupScore.SUM_OF_TOP2;
    long[] whole = {
      choices, topK, scoring, groups, config.topkGroups(), two ? 1 : 0, config.renormalize() ? 1 : 0
    };
    MemorySegment s = arena.allocate(BYTES, 8);
    for (int i = 0; i < whole.length; i++) {
      s.setAtIndex(ValueLayout.JAVA_LONG, i, whole[i]);
    }
    s.setAtIndex(ValueLayout.JAVA_DOUBLE, 7, config.epsilon());
    s.setAtIndex(ValueLayout.JAVA_DOUBLE, 8, config.sumFloor());
    s.set(ValueLayout.JAVA_FLOAT, 72, config.scalingFactor());
    return Optional.of(s);
  }
}
