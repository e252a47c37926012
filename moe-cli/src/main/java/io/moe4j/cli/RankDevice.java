package io.moe4j.cli;

import io.moe4j.api.comm.CommProvider;
import io.moe4j.api.comm.RankInfo;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.oracle.BackendCatalog;
import io.moe4j.oracle.Candidate;
import io.moe4j.oracle.FoundBackend;
import io.moe4j.oracle.MoeOracle;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import org.jspecify.annotations.Nullable;

/**
 * Which device one of several processes computes on: one of the type that the oracle chooses for
 * its part of the layer, if something connects such devices; else the host.
 */
final class RankDevice {
  private RankDevice() {}

  /**
   * Opens it.
   *
   * @param moe for notes
   * @param oracle who chooses; stays the caller's
   * @param config this rank's part of a layer, hidden states in the dtype of {@link HiddenDtype}
   * @param backend asked for by name, or null
   * @param me this process
   * @return the device, owned by the caller
   * @throws CliException if this process has no device of its own, or the backend asked for
   *     computes on devices that nothing connects
   */
  static Device open(
      Moe moe, MoeOracle oracle, MoeConfig config, @Nullable String backend, RankInfo me) {
    BackendCatalog catalog = oracle.catalog();
    Platform platform = catalog.detectPlatform();
    Optional<FoundBackend> chosen =
        oracle.evaluate(config, platform, backend).chosen().map(Candidate::backend);
    if (chosen.isEmpty() || chosen.get().deviceType().equals(DeviceType.CPU)) {
      return host(catalog);
    }
    DeviceType type = chosen.get().deviceType();
    Optional<String> apart = whyNotConnected(catalog, platform, type);
    if (apart.isPresent()) {
      if (backend != null) {
        throw new CliException(
            ExitCode.UNSUPPORTED, "--backend is " + backend + ", but " + apart.get());
      }
      if (me.rank() == 0) {
        moe.note("ranks run on the host: " + apart.get());
      }
      return host(catalog);
    }
    return catalog.openDevice(chosen.get(), own(platform, type, me));
  }

  /** A launcher either shows all devices of the host to each process, or its own alone. */
  static DeviceId own(Platform platform, DeviceType type, RankInfo me) {
    List<DeviceId> there =
        platform.devices().stream().map(d -> d.id()).filter(d -> d.type().equals(type)).toList();
    if (there.size() == 1) {
      return there.getFirst();
    }
    if (me.localRank() >= there.size()) {
      throw new CliException(
          ExitCode.UNSUPPORTED,
          "rank "
              + me.rank()
              + " is process "
              + me.localRank()
              + " of its host, which has "
              + there.size()
              + " "
              + type
              + " devices; start one process a device, or give --backend cpu");
    }
    return there.get(me.localRank());
  }

  private static Optional<String> whyNotConnected(
      BackendCatalog catalog, Platform platform, DeviceType type) {
    List<String> refused = new ArrayList<>();
    for (CommProvider p : catalog.commProviders()) {
      if (p.deviceType().equals(type)) {
        Optional<String> why = p.whyUnsupported(platform);
        if (why.isEmpty()) {
          return Optional.empty();
        }
        refused.add(p.name() + ": " + why.get());
      }
    }
    return Optional.of(
        "nothing connects "
            + type
            + " devices"
            + (refused.isEmpty() ? "" : " (" + String.join(" | ", refused) + ")"));
  }

  private static Device host(BackendCatalog catalog) {
    return catalog.deviceProviders().stream()
        .filter(p -> p.type().equals(DeviceType.CPU))
        .findFirst()
        .orElseThrow(() ->
            new CliException(ExitCode.UNSUPPORTED, "ranks on the host need the jar backend-cpu"))
        .provider()
        .open(0);
  }
}
