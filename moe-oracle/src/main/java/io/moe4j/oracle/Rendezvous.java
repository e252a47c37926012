package io.moe4j.oracle;

import io.moe4j.api.comm.CommConfig;
import io.moe4j.api.comm.CommException;
import io.moe4j.api.comm.CommProvider;
import io.moe4j.api.comm.Communicator;
import io.moe4j.api.comm.RankInfo;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.Platform;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import java.util.Properties;
import java.util.SortedMap;
import java.util.TreeMap;

/**
 * Brings the processes of {@link RankInfo} together: rank 0 listens at the master's port, the
 * others come and say what they are about to run; when all have come and agree, rank 0 hands out
 * the name of a group (for NCCL its 128 bytes), and every rank opens its communicator.
 *
 * <p>Ranks that disagree (their number, the version of moe4j, the communication library, the
 * layers, settings {@code -Dmoe4j.exchange...}) are an error on every rank that names the
 * difference. Nothing is encrypted: for networks whose hosts trust each other.
 *
 * <pre>{@code
 * RankInfo me = RankInfo.fromEnvironment(); // torchrun, Slurm, LeaderWorkerSet
 * MoeConfig config = model.config(0).toBuilder()
 *     .parallel(ParallelConfig.expert(me.worldSize(), me.rank())).build();
 * try (Communicator group = Rendezvous.join(me, catalog, device, Rendezvous.layers(Map.of(0, config)))) {
 *   MoeLayer.builder(config, mine).communicator(group).device(device).build();
 * }
 * }</pre>
 *
 * @since 0.2.0
 */
public final class Rendezvous {
  private static final String EXCHANGE = "moe4j.exchange.";

  private Rendezvous() {}

  /**
   * {@link #join(RankInfo, CommProvider, Device, Map, Duration)} over what is found for the device,
   * with the default deadline.
   *
   * @param info this process
   * @param catalog where to look for a {@link CommProvider}
   * @param device of the layers; outlives the communicator
   * @param agreement what all ranks must have alike; see {@link #layers}
   * @return the communicator, owned by the caller; for one process a group of one
   * @throws CommException if a rank does not come, or disagrees
   * @throws IllegalArgumentException if nothing carries memory of this device
   */
  public static Communicator join(
      RankInfo info, BackendCatalog catalog, Device device, Map<String, String> agreement) {
    Platform platform = catalog.detectPlatform();
    return join(
        info,
        choose(catalog.commProviders(), device, platform),
        device,
        agreement,
        CommConfig.DEFAULT_DEADLINE);
  }

  static CommProvider choose(List<CommProvider> found, Device device, Platform platform) {
    List<String> refused = new ArrayList<>();
    for (CommProvider p :
        found.stream().sorted(Comparator.comparing(CommProvider::name)).toList()) {
      Optional<String> why =
          p.deviceType().equals(device.info().id().type())
              ? p.whyUnsupported(platform)
              : Optional.of("carries memory of " + p.deviceType());
      if (why.isEmpty()) {
        return p;
      }
      refused.add(p.name() + ": " + why.get());
    }
    throw new IllegalArgumentException(
        "nothing connects ranks on "
            + device.info().id()
            + (refused.isEmpty()
                ? "; add the jar comm-tcp (processors) or comm-nccl (GPUs)"
                : " (" + String.join(" | ", refused) + ")"));
  }

  /**
   * Joins.
   *
   * @param info this process
   * @param provider the same on every rank
   * @param device of the layers; outlives the communicator
   * @param agreement what all ranks must have alike, by name; settings of exchanges ({@code
   *     -Dmoe4j.exchange...}) are compared besides
   * @param deadline how long to wait for the others, here and in every call of the communicator
   * @return the communicator, owned by the caller
   * @throws CommException if a rank does not come within the deadline, or disagrees
   */
  public static Communicator join(
      RankInfo info,
      CommProvider provider,
      Device device,
      Map<String, String> agreement,
      Duration deadline) {
    return join(info, provider, device, agreement, deadline, System.getProperties());
  }

  static Communicator join(
      RankInfo info,
      CommProvider provider,
      Device device,
      Map<String, String> agreement,
      Duration deadline,
      Properties properties) {
    Objects.requireNonNull(info, "info");
    if (info.worldSize() == 1) {
      return provider.open(new CommConfig(provider.newGroup(), 0, 1, deadline), device);
    }
    SortedMap<String, String> said = new TreeMap<>(agreement);
    String version = Rendezvous.class.getPackage().getImplementationVersion();
    said.put("moe4j", version == null ? "not from a jar" : version);
    said.put("communication", (provider.name() + " " + provider.version()).strip());
    said.put("ranks", Integer.toString(info.worldSize()));
    said.putAll(settings(properties));
    String group =
        info.rank() == 0
            ? new MeetingHost(info, said, deadline).handOut(provider::newGroup)
            : MeetingGuest.ask(info, said, deadline);
    return provider.open(new CommConfig(group, info.rank(), info.worldSize(), deadline), device);
  }

  /** Settings of exchanges: with different ones ranks would write each other what none expects. */
  static Map<String, String> settings(Properties of) {
    Map<String, String> all = new TreeMap<>();
    for (String name : of.stringPropertyNames()) {
      String value = of.getProperty(name, "").strip().toLowerCase(Locale.ROOT);
      if (name.startsWith(EXCHANGE) && !value.isEmpty()) {
        all.put("-D" + name, value);
      }
    }
    return all;
  }

  /**
   * What ranks have to agree on about their layers: everything in a config but which rank it is of
   * and which experts that rank has.
   *
   * @param configs of the layers to be built, by their number in the model
   * @return one entry a layer
   */
  public static Map<String, String> layers(Map<Integer, MoeConfig> configs) {
    Map<String, String> all = new TreeMap<>();
    configs.forEach((layer, config) -> all.put("layer " + layer, common(config)));
    return all;
  }

  private static String common(MoeConfig config) {
    ParallelConfig p = config.parallel();
    MoeConfig whole = config.toBuilder().noExpertMap().parallel(ParallelConfig.SINGLE).build();
    String placement = config.placement().map(e -> ", " + e).orElse("");
    String tokens = p.replicatedTokens() ? ", replicated tokens" : "";
    return "tp " + p.tpSize() + ", ep " + p.epSize() + tokens + placement + ", " + whole;
  }
}
