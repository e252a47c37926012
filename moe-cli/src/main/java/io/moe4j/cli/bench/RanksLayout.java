package io.moe4j.cli.bench;

import io.moe4j.api.config.ParallelConfig;
import java.util.Optional;

/**
 * How a layer and its tokens are spread over GPUs.
 *
 * @param ranks GPUs
 * @param tp ranks that share each expert; the others share the experts
 * @param replicated whether each rank has all tokens, as behind tensor-parallel attention, or an
 *     even part of them
 */
public record RanksLayout(int ranks, int tp, boolean replicated) {
  /** The whole on one GPU. */
  static final RanksLayout ONE = new RanksLayout(1, 1, false);

  /**
   * A layout.
   *
   * @throws IllegalArgumentException if {@code tp} does not divide {@code ranks}
   */
  public RanksLayout {
    if (ranks < 1 || tp < 1 || ranks % tp != 0) {
      throw new IllegalArgumentException(
          "tp is " + tp + ", must divide the number of ranks, " + ranks);
    }
  }

  /** {@return ranks that share the experts} */
  public int ep() {
    return ranks / tp;
  }

  ParallelConfig parallel(int rank) {
    ParallelConfig own = new ParallelConfig(tp, rank % tp, ep(), rank / tp);
    return replicated ? own.replicated() : own;
  }

  /**
   * {@return which size of a shape cannot be shared evenly, or nothing}
   *
   * @param shape of the whole layer
   */
  public Optional<String> whyNot(BenchShape shape) {
    if (shape.numExperts() % ep() != 0) {
      return Optional.of(
          shape.name() + " has " + shape.numExperts() + " experts, must divide by " + ep());
    }
    if (shape.intermediateSize() % tp != 0) {
      return Optional.of(
          shape.name()
              + " has an intermediate size of "
              + shape.intermediateSize()
              + ", must divide by "
              + tp);
    }
    return Optional.empty();
  }

  /** {@return the layer as a rank's config has it: all experts, its share of each} */
  BenchShape config(BenchShape whole) {
    return new BenchShape(
        whole.name(),
        whole.numExperts(),
        whole.topK(),
        whole.hiddenSize(),
        whole.intermediateSize() / tp);
  }

  /** {@return what a rank has weights of: its experts, its share of each} */
  BenchShape weights(BenchShape whole) {
    int experts = whole.numExperts() / ep();
    return new BenchShape(
        whole.name(),
        experts,
        Math.min(whole.topK(), experts),
        whole.hiddenSize(),
        whole.intermediateSize() / tp);
  }

  /** {@return the tokens that each rank brings, of so many together} */
  int ownTokens(int all) {
    return replicated ? all : Math.ceilDiv(all, ranks);
  }

  /** {@return the first of a rank's tokens} */
  int firstToken(int all, int rank) {
    return replicated ? 0 : ownTokens(all) * rank;
  }

  /**
   * How much faster all ranks can be than one, given what was chosen: those that share the experts
   * wait for the one with most to do, those that share each expert have the same.
   *
   * @param rows whether work is rows, or experts with any row
   */
  double limit(DeviceBatch[] batches, int experts, boolean rows) {
    return tp * DeviceBatch.limit(batches, experts, ep(), rows);
  }

  /**
   * Like {@code ep 2}, or {@code tp 2, replicated tokens}.
   *
   * @return sizes
   */
  @Override
  public String toString() {
    if (ranks == 1) {
      return "one rank";
    }
    String sizes = tp == 1 ? "" : "tp " + tp;
    if (ep() > 1) {
      sizes += (sizes.isEmpty() ? "" : ", ") + "ep " + ep();
    }
    return sizes + (replicated ? ", replicated tokens" : "");
  }
}
