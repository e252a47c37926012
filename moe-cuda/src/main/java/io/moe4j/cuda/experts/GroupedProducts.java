package io.moe4j.cuda.experts;

import io.moe4j.api.spi.Fact;
import io.moe4j.cuda.ops.ComposedLora;
import io.moe4j.cuda.ops.ShrinkPlan;
import io.moe4j.cuda.ops.TileSort;
import java.util.List;

/**
 * What a backend brings to {@link GroupedExperts}: its weights on the device and the products with
 * them. Safe for several threads. Nothing is allocated on the device after construction.
 *
 * @since 0.2.0
 */
public interface GroupedProducts extends AutoCloseable {
  /**
   * {@return bytes of a forward's scratch that are these products' own, at {@link
   * ForwardLayout#own}; never fewer for more pairs}
   *
   * @param pairs {@code P}
   * @param composed whether deltas are left to a punica wrapper
   */
  long ownBytes(long pairs, boolean composed);

  /**
   * Chooses how a forward runs. Launches nothing.
   *
   * @param f the forward
   * @return its launches
   */
  Forward forward(GroupedForward f);

  /** {@return what is true of these experts, see {@code Experts.facts}} */
  List<Fact> facts();

  /** Gives the device memory of the weights back. Called once, when no forward runs. */
  @Override
  void close();

  /** One forward, as it was chosen. */
  interface Forward {
    /** {@return whether every pair is a tile of its own and nothing is sorted} */
    boolean naive();

    /** {@return rows of a tile of the sort} */
    int tileRows();

    /** {@return how the shrinks of LoRA run} */
    ShrinkPlan shrinks();

    /**
     * Enqueues what the products want done with the sorted lists first. Not called where {@link
     * #naive}.
     *
     * @param sort that made them
     */
    default void sorted(TileSort sort) {}

    /** Enqueues everything after the sort, deltas included. */
    void run();

    /** {@return the products as they are, for deltas of others} */
    ComposedLora.Products plain();
  }
}
