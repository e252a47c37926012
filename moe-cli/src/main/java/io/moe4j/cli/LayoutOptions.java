package io.moe4j.cli;

import io.moe4j.cli.bench.BenchShape;
import io.moe4j.cli.bench.RanksLayout;
import java.util.List;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.Option;

/** How {@code moe bench --device cuda} spreads layers and tokens over GPUs. */
final class LayoutOptions {
  @Option(
      names = "--ranks",
      paramLabel = "N",
      description =
          "With --device cuda: share each layer among so many GPUs of this machine, and print the"
              + " time of all tokens (--tokens of all ranks together) against one GPU's. Needs NCCL.")
  private @Nullable Integer ranks;

  @Option(
      names = "--tp",
      paramLabel = "N",
      description =
          "With --ranks: ranks that share each expert; the others share the experts. Default: 1,"
              + " all share the experts.")
  private @Nullable Integer tp;

  @Option(
      names = "--replicated",
      description =
          "With --ranks: every rank has all tokens, as behind tensor-parallel attention; else each"
              + " has an even part of them.")
  private boolean replicated;

  @SuppressWarnings("NullAway.Init") // picocli sets them
  LayoutOptions() {}

  /** Refuses all of them where no GPUs are measured. */
  void requireNone() {
    if (ranks != null) {
      throw CliException.usage("--ranks is " + ranks + "; it goes with --device cuda");
    }
    requireRanks();
  }

  private void requireRanks() {
    if (tp != null || replicated) {
      throw CliException.usage(
          (tp != null ? "--tp is " + tp : "--replicated is given") + "; it goes with --ranks");
    }
  }

  /**
   * {@return what was given, null for one GPU}
   *
   * @throws CliException if it does not fit together
   */
  @Nullable RanksLayout layout() {
    if (ranks == null) {
      requireRanks();
      return null;
    }
    if (ranks < 2) {
      throw CliException.usage("--ranks is " + ranks + ", must be at least 2");
    }
    int share = tp == null ? 1 : tp;
    if (share < 1 || ranks % share != 0) {
      throw CliException.usage("--tp is " + share + ", must divide the number of ranks, " + ranks);
    }
    return new RanksLayout(ranks, share, replicated);
  }

  /** Refuses a shape that ranks cannot share evenly. */
  static void requireShared(RanksLayout layout, BenchShape shape) {
    layout
        .whyNot(shape)
        .ifPresent(why -> {
          throw CliException.usage("--ranks is " + layout.ranks() + ", as " + layout + "; " + why);
        });
  }

  /** Refuses numbers of tokens that ranks cannot share evenly. */
  static void requireShared(RanksLayout layout, List<Integer> tokens) {
    for (int t : tokens) {
      if (!layout.replicated() && t % layout.ranks() != 0) {
        throw CliException.usage(
            "--tokens is " + t + ", must be a multiple of --ranks " + layout.ranks());
      }
    }
  }
}
