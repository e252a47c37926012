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
 * @param loraBOrder how B's columns fold the experts of fused parameters, where the config does not
 *     say it; empty: as PEFT does, and files whose writer is not known, or is known to have changed
 *     its order, are refused
 * @param applyRouter whether factors on the router are applied: they change the logits, and with
 *     them who computes a token. If not, {@code inBlock} decides
 * @param maxGrowth refuse adapters that would take over 1 GiB and more than this many times what
 *     their files take (memory is taken for all experts, however few have factors)
 */
public record AdapterPolicy(
    Action inBlock,
    Action outside,
    int maxRank,
    long maxBytes,
    Optional<FusedSide> side,
    Optional<String> singleTarget,
    Optional<FusedOrder> loraBOrder,
    boolean applyRouter,
    int maxGrowth) {

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

  /**
   * The order in which a factor of a fused parameter folds experts {@code e} and ranks {@code j}.
   */
  public enum FusedOrder {
    /** Index {@code j * E + e}: what PEFT writes into B. */
    RANK_MAJOR,
    /**
     * Index {@code e * r + j}: what Unsloth wrote into B before September 2026, and what
     * Megatron-Bridge writes.
     */
    GROUPED_BY_EXPERT
  }

  /** Refuse what would change a MoE block's result, report the rest; any rank, 32 GiB. */
  public static final AdapterPolicy DEFAULT =
      new AdapterPolicy(
          Action.REFUSE,
          Action.SKIP,
          Integer.MAX_VALUE,
          32L << 30,
          Optional.empty(),
          Optional.empty(),
          Optional.empty(),
          false,
          64);

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
    Objects.requireNonNull(loraBOrder, "loraBOrder");
    if (maxRank < 1 || maxBytes < 1 || maxGrowth < 1) {
      throw new IllegalArgumentException(
          "maxRank is "
              + maxRank
              + ", maxBytes "
              + maxBytes
              + " and maxGrowth "
              + maxGrowth
              + ", all must be at least 1");
    }
  }

  /**
   * {@return this policy with another action inside the blocks}
   *
   * @param action the action
   */
  public AdapterPolicy withInBlock(Action action) {
    return new AdapterPolicy(
        action, outside, maxRank, maxBytes, side, singleTarget, loraBOrder, applyRouter, maxGrowth);
  }

  /**
   * {@return this policy with another action outside the blocks}
   *
   * @param action the action
   */
  public AdapterPolicy withOutside(Action action) {
    return new AdapterPolicy(
        inBlock, action, maxRank, maxBytes, side, singleTarget, loraBOrder, applyRouter, maxGrowth);
  }

  /**
   * {@return this policy with another limit on ranks}
   *
   * @param rank at least 1
   */
  public AdapterPolicy withMaxRank(int rank) {
    return new AdapterPolicy(
        inBlock, outside, rank, maxBytes, side, singleTarget, loraBOrder, applyRouter, maxGrowth);
  }

  /**
   * {@return this policy with another limit on memory}
   *
   * @param bytes at least 1
   */
  public AdapterPolicy withMaxBytes(long bytes) {
    return new AdapterPolicy(
        inBlock, outside, maxRank, bytes, side, singleTarget, loraBOrder, applyRouter, maxGrowth);
  }

  /**
   * {@return this policy with an answer where the side of A cannot be told}
   *
   * @param forced the side
   */
  public AdapterPolicy withSide(FusedSide forced) {
    return new AdapterPolicy(
        inBlock,
        outside,
        maxRank,
        maxBytes,
        Optional.of(forced),
        singleTarget,
        loraBOrder,
        applyRouter,
        maxGrowth);
  }

  /**
   * {@return this policy with an answer where a lone pair's parameter cannot be told}
   *
   * @param parameter like {@code down_proj}
   */
  public AdapterPolicy withSingleTarget(String parameter) {
    return new AdapterPolicy(
        inBlock,
        outside,
        maxRank,
        maxBytes,
        side,
        Optional.of(parameter),
        loraBOrder,
        applyRouter,
        maxGrowth);
  }

  /**
   * {@return this policy with an answer where the order of B's columns is not in the file}
   *
   * @param order the order; files that say theirs are read by what they say
   */
  public AdapterPolicy withLoraBOrder(FusedOrder order) {
    return new AdapterPolicy(
        inBlock,
        outside,
        maxRank,
        maxBytes,
        side,
        singleTarget,
        Optional.of(order),
        applyRouter,
        maxGrowth);
  }

  /**
   * {@return this policy with factors on the router applied or refused}
   *
   * @param apply whether to apply them
   */
  public AdapterPolicy withRouter(boolean apply) {
    return new AdapterPolicy(
        inBlock, outside, maxRank, maxBytes, side, singleTarget, loraBOrder, apply, maxGrowth);
  }

  /**
   * {@return this policy with another limit on how much an adapter grows when it is loaded}
   *
   * @param times at least 1
   */
  public AdapterPolicy withMaxGrowth(int times) {
    return new AdapterPolicy(
        inBlock, outside, maxRank, maxBytes, side, singleTarget, loraBOrder, applyRouter, times);
  }
}
