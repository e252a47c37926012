package io.moe4j.oracle;

import io.moe4j.api.comm.Communicator;
import io.moe4j.api.config.ExpertPlacement;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.spi.ExpertExchange;
import io.moe4j.api.spi.ExpertExchangeProvider;
import io.moe4j.api.spi.Support;
import io.moe4j.api.spi.Support.Code;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Locale;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/** Which exchange goes with a layer's experts and ranks, and why not the others. */
final class Exchanges {
  /** One rank, or ranks whose parts the caller sums: no rows move. */
  static final class Local implements ExpertExchangeProvider {
    @Override
    public String name() {
      return "local";
    }

    @Override
    public int priority() {
      return 0;
    }

    @Override
    public Support isSupported(MoeConfig config, @Nullable Communicator communicator) {
      return Support.checks()
          .require(
              communicator == null || communicator.size() == 1,
              Code.PARALLEL,
              () ->
                  "a communicator of "
                      + (communicator == null ? 0 : communicator.size())
                      + " ranks, moves nothing between ranks")
          .require(
              config.placement().filter(ExpertPlacement::isRedundant).isEmpty(),
              Code.PARALLEL,
              () -> "experts on several ranks, each would add them: give a communicator")
          .result();
    }

    @Override
    public ExpertExchange open(
        MoeConfig config, @Nullable Communicator communicator, BlockOps block, Device device) {
      return new LocalExchange(config, block, device);
    }
  }

  private static final String ALL_THERE = "every rank has all tokens, moves each rank's own";

  /** What exchanges through host memory need, whatever the layer is. */
  private static Support.Checks betweenHosts(@Nullable Communicator communicator) {
    if (communicator == null) {
      return Support.checks().require(false, Code.PARALLEL, () -> "no communicator, needs one");
    }
    return Support.checks()
        .require(communicator.size() > 1, Code.PARALLEL, () -> "one rank, needs more")
        .require(
            communicator.deviceType().equals(DeviceType.CPU),
            Code.DEVICE,
            () -> "a communicator of " + communicator.deviceType() + " memory, takes cpu");
  }

  /** All rows to all ranks, through host memory. */
  static final class Gather implements ExpertExchangeProvider {
    @Override
    public String name() {
      return "gather";
    }

    @Override
    public int priority() {
      return 100;
    }

    @Override
    public Support isSupported(MoeConfig config, @Nullable Communicator communicator) {
      return betweenHosts(communicator)
          .require(!config.parallel().replicatedTokens(), Code.PARALLEL, () -> ALL_THERE)
          .result();
    }

    @Override
    public ExpertExchange open(
        MoeConfig config, @Nullable Communicator communicator, BlockOps block, Device device) {
      return new GatherExchange(
          config,
          Objects.requireNonNull(communicator, "communicator"),
          new LocalExchange(config, block, device));
    }
  }

  /** No rows, where every rank has all of them; sums over the ranks, through host memory. */
  static final class AllReduce implements ExpertExchangeProvider {
    @Override
    public String name() {
      return "allreduce";
    }

    @Override
    public int priority() {
      return 300; // before those that would send every rank what it has
    }

    @Override
    public Support isSupported(MoeConfig config, @Nullable Communicator communicator) {
      return betweenHosts(communicator)
          .require(
              config.parallel().replicatedTokens(),
              Code.PARALLEL,
              () ->
                  "each rank has its own tokens, needs the same on all:"
                      + " ParallelConfig.replicated()")
          .result();
    }

    @Override
    public ExpertExchange open(
        MoeConfig config, @Nullable Communicator communicator, BlockOps block, Device device) {
      return new AllReduceExchange(
          config,
          Objects.requireNonNull(communicator, "communicator"),
          new LocalExchange(config, block, device));
    }
  }

  /** Rows to the ranks whose experts they chose, through host memory. */
  static final class AllToAll implements ExpertExchangeProvider {
    @Override
    public String name() {
      return "alltoall";
    }

    @Override
    public int priority() {
      return 200;
    }

    @Override
    public Support isSupported(MoeConfig config, @Nullable Communicator communicator) {
      return betweenHosts(communicator)
          .require(!config.parallel().replicatedTokens(), Code.PARALLEL, () -> ALL_THERE)
          .require(
              communicator == null || config.placement().isPresent(),
              Code.PARALLEL,
              () ->
                  config.parallel().epSize() == 1
                      ? "all ranks have every expert, every row goes to all of them"
                      : "which experts the other ranks have is not known: set"
                          + " MoeConfig.placement")
          .result();
    }

    @Override
    public ExpertExchange open(
        MoeConfig config, @Nullable Communicator communicator, BlockOps block, Device device) {
      return new AllToAllExchange(
          config,
          Objects.requireNonNull(communicator, "communicator"),
          new LocalExchange(config, block, device),
          config.placement().orElseThrow());
    }
  }

  /** The share of ranks a token has to reach from which on it may as well go to all. */
  private static final double GO_TO_ALL = 0.9;

  /**
   * {@return the share of ranks that have an expert of a token, if tokens choose evenly; the own
   * rank is one of them}
   */
  static double reached(MoeConfig config) {
    double ranks = config.parallel().epSize();
    return 1 - Math.pow(1 - 1 / ranks, config.topK());
  }

  private static String reach(MoeConfig config) {
    return String.format(
        Locale.ROOT,
        "top_k %d reaches %.0f%% of %d ranks",
        config.topK(),
        100 * reached(config),
        config.parallel().epSize());
  }

  private Exchanges() {}

  /**
   * A choice.
   *
   * @param provider what was taken
   * @param explanation one line, with the reasons of those that were not
   */
  record Choice(ExpertExchangeProvider provider, String explanation) {}

  /**
   * The one of the highest priority that fits.
   *
   * @param wanted a name to take, or null for the best; a token that reaches nearly all ranks
   *     anyway is then sent to all
   * @throws IllegalArgumentException if the communicator and the config disagree, nothing fits, or
   *     not the one that is wanted
   */
  static Choice choose(
      MoeConfig config,
      @Nullable Communicator communicator,
      List<? extends ExpertExchangeProvider> found,
      @Nullable String wanted) {
    requireRanks(config, communicator);
    List<ExpertExchangeProvider> all = new ArrayList<>(found);
    all.add(new Local());
    all.add(new Gather());
    all.add(new AllToAll());
    all.add(new AllReduce());
    all.sort(
        Comparator.comparingInt(ExpertExchangeProvider::priority)
            .reversed()
            .thenComparing(ExpertExchangeProvider::name));
    List<String> refused = new ArrayList<>();
    ExpertExchangeProvider chosen = null;
    for (ExpertExchangeProvider p : all) {
      Support support = p.isSupported(config, communicator);
      if (!support.isSupported()) {
        refused.add(p.name() + ": " + support);
      } else if (wanted != null) {
        chosen = p.name().equals(wanted) ? p : chosen;
      } else if (p instanceof AllToAll && reached(config) > GO_TO_ALL) {
        refused.add(p.name() + ": " + reach(config) + ", gather sends to all in fewer steps");
      } else if (chosen == null) {
        chosen = p;
      }
    }
    if (chosen == null) {
      throw new IllegalArgumentException(
          (wanted == null ? "no exchange fits " : "exchange " + wanted + " does not fit ")
              + config.parallel()
              + " ("
              + String.join(" | ", refused)
              + ")");
    }
    String ranks =
        communicator == null
            ? config.parallel().toString()
            : config.parallel() + " over " + communicator.description();
    return new Choice(
        chosen,
        "exchange: "
            + chosen.name()
            + ", "
            + ranks
            + ", "
            + config.activationFormat()
            + " rows"
            + (chosen instanceof AllToAll ? "; " + reach(config) : "")
            + (refused.isEmpty() ? "" : " (refused: " + String.join(" | ", refused) + ")"));
  }

  private static void requireRanks(MoeConfig config, @Nullable Communicator communicator) {
    if (communicator != null
        && (communicator.size() != config.parallel().worldSize()
            || communicator.rank() != config.parallel().rank())) {
      throw new IllegalArgumentException(
          "communicator is rank "
              + communicator.rank()
              + " of "
              + communicator.size()
              + ", the config says "
              + config.parallel()
              + ", rank "
              + config.parallel().rank()
              + " of "
              + config.parallel().worldSize());
    }
  }
}
