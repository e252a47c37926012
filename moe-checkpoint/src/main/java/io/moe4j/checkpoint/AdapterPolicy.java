package io.moe4j.checkpoint;

import java.util.Objects;
import java.util.Optional;

/**
 * What to do with the parts of an adapter that cannot be applied. Whatever is chosen, every tensor
 * appears in the {@link AdapterReport}. Damage (a factor without its partner, wrong shapes, NaN or
 * infinite values, a rank over {@code maxRank}) is always refused. Immutable.
 *
 * @param inBlock for tensors that would change a MoE block's result and cannot be applied: router,
 *     biases, DoRA, modules_to_save in the block, names that are not understood
 * @param outside for tensors outside the MoE blocks: attention, embeddings, dense MLPs
 * @param maxRank refuse larger ranks; at least 1
 * @param maxBytes refuse adapters that would take more memory once loaded
 * @param side which side of a stored parameter A covers, where neither shapes nor versions tell
 * @param singleTarget the fused parameter that a lone pair of factors belongs to, like {@code
 *     down_proj}, where neither the config nor shapes tell
 */
public record AdapterPolicy(
    Action inBlock,
    Action outside,
    int maxRank,
    long maxBytes,
    Optional<FusedSide> side,
    Optional<String> singleTarget) {

  /** What to do. */
  public enum Action {
    /** Throw. */
    REFUSE,
    /** Leave it out and say so in the report. */
    SKIP
  }

  /** Which dimension of a stored fused parameter {@code [E, dim1, dim2]} its A covers. */
  public enum FusedSide {
    /** Dimension 1. */
    DIM1,
    /** Dimension 2. */
    DIM2
  }

  /** Refuse what would change a MoE block's result, report the rest; any rank, 32 GiB. */
  public static final AdapterPolicy DEFAULT =
      new AdapterPolicy(
          Action.REFUSE,
          Action.SKIP,
          Integer.MAX_VALUE,
          32L << 30,
          Optional.empty(),
          Optional.empty());

  /** Refuse whatever cannot be applied. */
  public static final AdapterPolicy STRICT = DEFAULT.withOutside(Action.REFUSE);

  /** Apply what can be applied, report the rest. */
  public static final AdapterPolicy LENIENT = DEFAULT.withInBlock(Action.SKIP);

  /** Checks the limits. */
  public AdapterPolicy {
    Objects.requireNonNull(inBlock, "inBlock");
    Objects.requireNonNull(outside, "outside");
    Objects.requireNonNull(side, "side");
    Objects.requireNonNull(singleTarget, "singleTarget");
    if (maxRank < 1 || maxBytes < 1) {
      throw new IllegalArgumentException(
          "maxRank is " + maxRank + " and maxBytes " + maxBytes + ", both must be at least 1");
    }
  }

  /**
   * {@return this policy with another action inside the blocks}
   *
   * @param action the action
   */
  public AdapterPolicy withInBlock(Action action) {
    return new AdapterPolicy(action, outside, maxRank, maxBytes, side, singleTarget);
  }

  /**
   * {@return this policy with another action outside the blocks}
   *
   * @param action the action
   */
  public AdapterPolicy withOutside(Action action) {
    return new AdapterPolicy(inBlock, action, maxRank, maxBytes, side, singleTarget);
  }

  /**
   * {@return this policy with another limit on ranks}
   *
   * @param rank at least 1
   */
  public AdapterPolicy withMaxRank(int rank) {
    return new AdapterPolicy(inBlock, outside, rank, maxBytes, side, singleTarget);
  }

  /**
   * {@return this policy with another limit on memory}
   *
   * @param bytes at least 1
   */
  public AdapterPolicy withMaxBytes(long bytes) {
    return new AdapterPolicy(inBlock, outside, maxRank, bytes, side, singleTarget);
  }

  /**
   * {@return this policy with an answer where the side of A cannot be told}
   *
   * @param forced the side
   */
  public AdapterPolicy withSide(FusedSide forced) {
    return new AdapterPolicy(
        inBlock, outside, maxRank, maxBytes, Optional.of(forced), singleTarget);
  }

  /**
   * {@return this policy with an answer where a lone pair's parameter cannot be told}
   *
   * @param parameter like {@code down_proj}
   */
  public AdapterPolicy withSingleTarget(String parameter) {
    return new AdapterPolicy(inBlock, outside, maxRank, maxBytes, side, Optional.of(parameter));
  }
}
