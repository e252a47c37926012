package io.moe4j.oracle;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.BackendPriority;
import io.moe4j.api.spi.Support;
import io.moe4j.api.spi.Support.Code;
import io.moe4j.api.spi.Support.Reason;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Objects;
import java.util.Optional;
import java.util.OptionalInt;
import org.jspecify.annotations.Nullable;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Decides which backend computes a layer, and can always say why. The order:
 *
 * <ol>
 *   <li>every backend is asked, whatever was asked for by name, so that the table is whole
 *   <li>those that do not fit drop out with every reason: the oracle's own (no such device here,
 *       another activation format, no LoRA where LoRA is on) and the backend's
 *   <li>a backend asked for by name is taken or refused, never replaced
 *   <li>otherwise the largest priority wins, then the name. Negative priorities (readable
 *       references) therefore lose against everything else that fits; where one of them is all that
 *       fits it is taken, with a warning
 * </ol>
 *
 * One INFO line tells each decision; layers decided alike one after the other share one line. Safe
 * for threads.
 */
public final class MoeOracle implements AutoCloseable {
  private static final Logger LOG = LoggerFactory.getLogger(MoeOracle.class);

  private final BackendCatalog catalog;
  private volatile String lastLogged = "";

  private MoeOracle(BackendCatalog catalog) {
    this.catalog = Objects.requireNonNull(catalog, "catalog");
  }

  /**
   * Over what is on the class path and module path.
   *
   * @return the oracle, owned by the caller
   */
  public static MoeOracle discover() {
    return new MoeOracle(BackendCatalog.discover());
  }

  /**
   * Over what is on the class path and module path, and in a plugins directory.
   *
   * @param plugins an existing directory, see {@link BackendCatalog}
   * @return the oracle, owned by the caller
   * @throws io.moe4j.api.MoeException if the directory cannot be read
   */
  public static MoeOracle discover(Path plugins) {
    return new MoeOracle(BackendCatalog.discover(plugins));
  }

  /**
   * Over a catalog.
   *
   * @param catalog closed with the oracle
   * @return the oracle
   */
  public static MoeOracle of(BackendCatalog catalog) {
    return new MoeOracle(catalog);
  }

  /** {@return what was found} */
  public BackendCatalog catalog() {
    return catalog;
  }

  /**
   * Decides for this machine.
   *
   * @param config the layer
   * @return the decision, with a chosen backend
   * @throws UnsupportedConfigException if nothing fits
   */
  public Selection select(MoeConfig config) {
    return select(config, catalog.detectPlatform());
  }

  /**
   * Decides for a machine, this one or another.
   *
   * @param config the layer
   * @param platform the machine
   * @return the decision, with a chosen backend
   * @throws UnsupportedConfigException if nothing fits
   * @since 0.2.0
   */
  public Selection select(MoeConfig config, Platform platform) {
    return select(config, platform, null);
  }

  /**
   * Decides for a machine, this one or another, where the caller may have a wish.
   *
   * @param config the layer
   * @param platform the machine
   * @param requested name of the backend to take; null = the best one
   * @return the decision, with a chosen backend
   * @throws UnsupportedConfigException if nothing fits, or the one asked for is refused or unknown
   */
  public Selection select(MoeConfig config, Platform platform, @Nullable String requested) {
    Selection selection = evaluate(config, platform, requested);
    if (selection.chosen().isEmpty()) {
      throw new UnsupportedConfigException(selection);
    }
    log(selection);
    Events.Choice event = new Events.Choice();
    if (event.isEnabled()) {
      event.chosen = selection.chosenBackend().name();
      event.requested = requested == null ? "" : requested;
      event.summary = selection.summary();
      event.commit();
    }
    return selection;
  }

  private void log(Selection selection) {
    String line = selection.summary();
    boolean repeated = line.equals(lastLogged);
    lastLogged = line;
    if (repeated) {
      LOG.debug("{}", line);
      return;
    }
    LOG.info("{}", line);
    Candidate chosen = selection.chosen().orElseThrow();
    if (!selection.isExplicit() && chosen.priority().orElse(0) < 0) {
      LOG.warn(
          "{} is all that fits, and it is a reference: right, but slow. {}",
          chosen.name(),
          "Selection.explain() tells why the others do not fit.");
    }
    LOG.debug("{}", selection.explain());
  }

  /**
   * Like {@link #select(MoeConfig, Platform)}, but neither throws nor logs: for tools that show the
   * table.
   *
   * @param config the layer
   * @param platform the machine
   * @return the decision; nothing chosen where nothing fits
   * @since 0.2.0
   */
  public Selection evaluate(MoeConfig config, Platform platform) {
    return evaluate(config, platform, null);
  }

  /**
   * Like {@link #select(MoeConfig, Platform, String)}, but neither throws nor logs: for tools that
   * show the table.
   *
   * @param config the layer
   * @param platform the machine
   * @param requested name of the backend to take; null = the best one
   * @return the decision; nothing chosen where nothing fits
   */
  public Selection evaluate(MoeConfig config, Platform platform, @Nullable String requested) {
    Objects.requireNonNull(config, "config");
    Objects.requireNonNull(platform, "platform");
    List<Candidate> candidates = new ArrayList<>();
    for (FoundBackend b : catalog.backends()) {
      candidates.add(ask(b, config, platform));
    }
    candidates.sort(
        Comparator.comparing((Candidate c) -> !c.isSupported())
            .thenComparing(
                c -> c.isSupported() ? c.priority().orElse(BackendPriority.REFERENCE) : 0,
                Comparator.reverseOrder())
            .thenComparing(Candidate::name));
    Optional<Candidate> chosen =
        candidates.stream()
            .filter(c -> requested == null || c.name().equals(requested))
            .filter(Candidate::isSupported)
            .findFirst();
    return new Selection(
        config,
        platform,
        Optional.ofNullable(requested),
        chosen,
        candidates,
        catalog.failures(),
        "",
        List.of());
  }

  private Candidate ask(FoundBackend b, MoeConfig config, Platform platform) {
    List<Reason> reasons = new ArrayList<>();
    if (platform.device(b.deviceType()).isEmpty()) {
      reasons.add(new Reason(Code.DEVICE, platform.whyAbsent(b.deviceType())));
    }
    if (b.activationFormat() != config.activationFormat()) {
      reasons.add(
          new Reason(
              Code.ACTIVATION_FORMAT,
              "takes "
                  + b.activationFormat()
                  + " activations, the layer has "
                  + config.activationFormat()));
    }
    config
        .lora()
        .filter(lora -> !b.supportsLora())
        .ifPresent(lora ->
            reasons.add(
                new Reason(
                    Code.LORA,
                    "takes no adapters, the layer has LoRA on ("
                        + lora.maxLoras()
                        + " slots, rank up to "
                        + lora.maxRank()
                        + ")")));
    reasons.addAll(catalog.blockReasons(b, config));
    reasons.addAll(catalog.loraReasons(b, config));
    reasons.addAll(ownReasons(b, config, platform));
    OptionalInt priority = OptionalInt.empty();
    try {
      priority =
          OptionalInt.of(
              PluginFault.guard(Faults.who(b), () -> b.backend().priority(config, platform)));
    } catch (PluginFault e) {
      reasons.add(new Reason(Code.LOAD_FAILURE, "priority failed: " + e.getMessage()));
    }
    Support support =
        reasons.isEmpty() ? Support.yes() : new Support.No(reasons.stream().distinct().toList());
    return new Candidate(b, priority, support);
  }

  private static List<Reason> ownReasons(FoundBackend b, MoeConfig config, Platform platform) {
    try {
      Support own =
          PluginFault.guard(Faults.who(b), () -> b.backend().isSupportedConfig(config, platform));
      if (own == null) { // strangers are not null-checked
        return List.of(new Reason(Code.LOAD_FAILURE, "isSupportedConfig returned null"));
      }
      return own.reasons();
    } catch (PluginFault e) {
      return List.of(new Reason(Code.LOAD_FAILURE, "isSupportedConfig failed: " + e.getMessage()));
    }
  }

  /** Closes the catalog, and with it the class loaders of the plugins. */
  @Override
  public void close() {
    catalog.close();
  }
}
