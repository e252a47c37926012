package io.moe4j.cli;

import io.moe4j.api.comm.RankInfo;
import io.moe4j.api.config.ParallelConfig;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.Option;

/** Which of how many processes this one is, where the environment does not say it. */
final class RankOptions {
  @Option(
      names = "--ranks",
      paramLabel = "N",
      description =
          "Processes that share each layer; with --rank and --master. Default: what torchrun, srun"
              + " or a Kubernetes LeaderWorkerSet said in the environment, else one.")
  private @Nullable Integer ranks;

  @Option(names = "--rank", paramLabel = "R", description = "This process, 0..N-1.")
  private @Nullable Integer rank;

  @Option(
      names = "--master",
      paramLabel = "HOST:PORT",
      description = "Where rank 0 waits for the others.")
  private @Nullable String master;

  @Option(
      names = "--tp",
      paramLabel = "N",
      description =
          "Ranks that share each expert; the others share the experts. Default: 1, all share the"
              + " experts.")
  private int tp = 1;

  @Option(
      names = "--replicated",
      description =
          "Every rank brings all tokens and gets all results, as behind tensor-parallel attention;"
              + " only sums travel. Else each brings a block of them.")
  private boolean replicated;

  RankInfo info() {
    String host = null;
    Integer port = null;
    if (master != null) {
      int colon = master.lastIndexOf(':');
      try {
        host = master.substring(0, Math.max(colon, 0));
        port = Integer.valueOf(master.substring(colon + 1));
      } catch (NumberFormatException e) {
        host = "";
      }
      if (host.isEmpty()) {
        throw CliException.usage("--master is \"" + master + "\", must be HOST:PORT");
      }
    }
    try {
      return RankInfo.fromEnvironment(
          new RankInfo.Options(ranks, rank, null, host, port), System.getenv());
    } catch (IllegalArgumentException e) {
      throw new CliException(ExitCode.USAGE, String.valueOf(e.getMessage()), e);
    }
  }

  ParallelConfig parallel(RankInfo me) {
    if (tp < 1 || me.worldSize() % tp != 0) {
      throw CliException.usage(
          "--tp is " + tp + ", must divide the number of ranks, " + me.worldSize());
    }
    if (replicated && me.worldSize() == 1) {
      throw CliException.usage("--replicated is given; it is for several ranks, this is one");
    }
    return new ParallelConfig(tp, me.rank() % tp, me.worldSize() / tp, me.rank() / tp, replicated);
  }
}
