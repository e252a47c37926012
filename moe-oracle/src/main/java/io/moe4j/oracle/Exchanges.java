package io.moe4j.oracle;

import io.moe4j.api.comm.Communicator;
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
          .result();
    }

    @Override
    public ExpertExchange open(
        MoeConfig config, @Nullable Communicator communicator, BlockOps block, Device device) {
      return new LocalExchange(config, block, device);
    }
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
      if (communicator == null) {
        return Support.no(Code.PARALLEL, "no communicator, needs one");
      }
      return Support.checks()
          .require(communicator.size() > 1, Code.PARALLEL, () -> "one rank, needs more")
          .require(
              communicator.deviceType().equals(DeviceType.CPU),
              Code.DEVICE,
              () -> "a communicator of " + communicator.deviceType() + " memory, takes cpu")
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
   * @throws IllegalArgumentException if the communicator and the config disagree, or nothing fits
   */
  static Choice choose(
      MoeConfig config,
      @Nullable Communicator communicator,
      List<? extends ExpertExchangeProvider> found) {
    requireRanks(config, communicator);
    List<ExpertExchangeProvider> all = new ArrayList<>(found);
    all.add(new Local());
    all.add(new Gather());
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
      } else if (chosen == null) {
        chosen = p;
      }
    }
    if (chosen == null) {
      throw new IllegalArgumentException(
          "no exchange fits " + config.parallel() + " (" + String.join(" | ", refused) + ")");
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
