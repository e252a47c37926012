package io.moe4j.oracle;

import io.moe4j.api.DeviceException;
import io.moe4j.api.MoeException;
import io.moe4j.api.comm.CommProvider;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceProvider;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.spi.BlockOpsProvider;
import io.moe4j.api.spi.ExpertExchangeProvider;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.api.spi.Support;
import io.moe4j.api.spi.Support.Code;
import io.moe4j.api.spi.Support.Reason;
import io.moe4j.api.weights.MoeLayerWeights;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import java.util.function.Supplier;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * The backends and device providers of this process: those on the class path and module path, and
 * those of a plugins directory. In a plugins directory each jar is a plugin, and so is each
 * sub-directory with the jars in it; a plugin has a class loader of its own in which its jars come
 * before everything but the API, SLF4J and the JDK.
 *
 * <p>Whatever cannot be loaded is kept in {@link #failures()}; nothing a plugin does makes
 * discovery fail. Of two backends of one name neither is used, because they could not be told apart
 * later, and both are failures that name the other; but no plugin takes a name away from the class
 * path or module path. The same holds for two device providers of one type. Immutable and safe for
 * threads. Closing it closes the plugins' class loaders: close what was made from their backends
 * first.
 */
public final class BackendCatalog implements AutoCloseable {
  private static final Logger LOG = LoggerFactory.getLogger(BackendCatalog.class);

  private final List<FoundBackend> backends;
  private final List<FoundDeviceProvider> deviceProviders;
  private final List<FoundBlockOps> blockOps;
  private final List<FoundPunica> punica;
  private final List<ExpertExchangeProvider> exchanges;
  private final List<CommProvider> comms;
  private final List<PluginFailure> failures;
  private final List<PluginClassLoader> loaders;

  private BackendCatalog(Discovery found) {
    this(found, new Ambiguities(found));
  }

  private BackendCatalog(Discovery found, Ambiguities unique) {
    loaders = List.copyOf(found.loaders);
    backends = unique.backends().stream().sorted(Comparator.comparing(FoundBackend::name)).toList();
    blockOps = List.copyOf(found.blockOps);
    punica = List.copyOf(found.punica);
    exchanges = List.copyOf(found.exchanges);
    comms = List.copyOf(found.comms);
    deviceProviders = unique.deviceProviders();
    failures =
        Stream.concat(found.failures.stream(), unique.failures().stream()).distinct().toList();
    for (PluginFailure f : failures) {
      LOG.warn(
          "Plugin {} from {} is not used: {}",
          Printable.line(f.name()),
          f.origin(),
          Printable.line(f.reason().message()));
      Events.plugin(f.name(), f.origin(), false, f.reason().message());
    }
    backends.forEach(b -> Events.plugin(b.name(), b.origin(), true, b.description()));
    deviceProviders.forEach(p ->
        Events.plugin(p.type() + " devices", p.origin(), true, p.provider().getClass().getName()));
  }

  /**
   * What is on the class path and module path.
   *
   * @return the catalog, owned by the caller
   */
  public static BackendCatalog discover() {
    return new BackendCatalog(scanned(null));
  }

  /**
   * What is on the class path and module path, and in a plugins directory.
   *
   * @param plugins an existing directory
   * @return the catalog, owned by the caller
   * @throws MoeException if the directory cannot be read
   */
  public static BackendCatalog discover(Path plugins) {
    return new BackendCatalog(scanned(Objects.requireNonNull(plugins, "plugins")));
  }

  private static Discovery scanned(@Nullable Path plugins) {
    ClassLoader own = BackendCatalog.class.getClassLoader();
    ClassLoader context = Thread.currentThread().getContextClassLoader();
    Discovery discovery = new Discovery();
    discovery.scanModules();
    discovery.scanLoader(own);
    if (context != null && !context.equals(own)) {
      discovery.scanLoader(context); // an application above a shared copy of this library
    }
    if (plugins != null) {
      discovery.scanPlugins(plugins, own);
    }
    return discovery;
  }

  /**
   * Exactly the given providers, without looking around: for programs that wire by hand, and tests.
   *
   * @param backends the backends
   * @param deviceProviders what opens their devices
   * @param blockOps what prepares the parts around the experts on those devices
   * @return the catalog
   * @throws MoeException if two backends have one name
   */
  public static BackendCatalog of(
      List<? extends ExpertsBackend> backends,
      List<? extends DeviceProvider> deviceProviders,
      List<? extends BlockOpsProvider> blockOps) {
    Discovery discovery = new Discovery();
    discovery.addGiven(backends, deviceProviders, blockOps);
    Ambiguities unique = new Ambiguities(discovery);
    if (!unique.failures().isEmpty()) {
      throw new MoeException(unique.failures().getFirst().reason().message());
    }
    return new BackendCatalog(discovery, unique);
  }

  /** {@return the backends that can be asked, by name} */
  public List<FoundBackend> backends() {
    return backends;
  }

  /**
   * {@return the backend of a name}
   *
   * @param name as {@link ExpertsBackend#name()} gives it
   */
  public Optional<FoundBackend> backend(String name) {
    return backends.stream().filter(b -> b.name().equals(name)).findFirst();
  }

  /** {@return the device providers, those of the class path first} */
  public List<FoundDeviceProvider> deviceProviders() {
    return deviceProviders;
  }

  /** {@return exchanges of other jars; those of the oracle itself are not among them} */
  List<ExpertExchangeProvider> exchanges() {
    return exchanges;
  }

  /**
   * {@return what connects ranks, as found; {@link Rendezvous} takes one of them}
   *
   * @since 0.2.0
   */
  public List<CommProvider> commProviders() {
    return comms;
  }

  /** {@return what could not be loaded, and why} */
  public List<PluginFailure> failures() {
    return failures;
  }

  /**
   * Asks every device provider what is here. Looks each time: a device may come and go.
   *
   * @return the machine
   */
  public Platform detectPlatform() {
    List<DeviceInfo> devices = new ArrayList<>();
    Map<DeviceType, String> absent = new LinkedHashMap<>();
    for (FoundDeviceProvider p : deviceProviders) {
      if (devices.stream().anyMatch(d -> d.id().type().equals(p.type()))) {
        continue; // another plugin's provider told of the same devices
      }
      try {
        DeviceProvider.Probe probe =
            PluginFault.guard("the " + p.type() + " devices of " + p.origin(), p.provider()::probe);
        if (probe == null) {
          absent.putIfAbsent(p.type(), p.origin() + " broke its contract: probe() is null");
        } else if (probe.devices().isEmpty()) {
          absent.putIfAbsent(p.type(), probe.absent());
        } else {
          devices.addAll(probe.devices());
          absent.remove(p.type());
        }
      } catch (PluginFault e) {
        absent.putIfAbsent(
            p.type(), "the provider from " + p.origin() + " failed: " + e.getMessage());
      }
    }
    for (FoundBackend b : backends) {
      if (provider(b.deviceType(), b.origin()).isEmpty()) {
        absent.putIfAbsent(b.deviceType(), noProvider(b.deviceType()));
      }
    }
    return new Platform(devices, absent);
  }

  /**
   * Opens a device for a backend: by the provider of the backend's own plugin where there is one,
   * else that of the class path, else any.
   *
   * @param backend whose device it is to be
   * @param device of the backend's type
   * @return the device, owned by the caller
   * @throws DeviceException if it cannot be opened, or no jar here opens such devices; the message
   *     names the one to add
   */
  public Device openDevice(FoundBackend backend, DeviceId device) {
    if (!device.type().equals(backend.deviceType())) {
      throw new IllegalArgumentException(
          "device is "
              + device
              + ", backend "
              + backend.name()
              + " computes on "
              + backend.deviceType());
    }
    FoundDeviceProvider provider =
        provider(device.type(), backend.origin())
            .orElseThrow(() ->
                new DeviceException(
                    "backend "
                        + backend.name()
                        + " needs a "
                        + device.type()
                        + " device; "
                        + noProvider(device.type())));
    Device opened;
    boolean interrupted = Thread.currentThread().isInterrupted();
    try {
      opened = provider.provider().open(device.ordinal());
    } catch (MoeException e) {
      PluginFault.forgetInterrupt(interrupted, e);
      throw e;
    } catch (Throwable e) {
      PluginFault.forgetInterrupt(interrupted, e);
      throw new DeviceException(
          "the provider from "
              + provider.origin()
              + " failed to open "
              + device
              + ": "
              + PluginFault.describe(e),
          PluginFault.printable(e));
    }
    if (opened == null) { // strangers are not null-checked
      throw new DeviceException(
          "the provider from " + provider.origin() + " opened " + device + " as null");
    }
    return opened;
  }

  private Optional<FoundDeviceProvider> provider(DeviceType type, PluginOrigin asker) {
    return deviceProviders.stream()
        .filter(p -> p.type().equals(type))
        .min(Comparator.comparingInt(p -> distance(p.origin(), asker)));
  }

  /** The asker's own plugin first, then the class path, then other plugins. */
  private static int distance(PluginOrigin origin, PluginOrigin asker) {
    return origin.plugin().equals(asker.plugin()) ? 0 : origin.plugin().isEmpty() ? 1 : 2;
  }

  /**
   * Prepares the parts of a block around a backend's experts: by the provider of the backend's own
   * plugin where there is one, else that of the class path, else any.
   *
   * @param backend whose block it is
   * @param config the layer
   * @param weights fits {@code config}; views that stay valid until the result is closed
   * @param device an open device of the backend's type
   * @return the operations, owned by the caller
   * @throws DeviceException if no jar here serves such devices; the message names the one to add
   */
  BlockOps prepareBlock(
      FoundBackend backend, MoeConfig config, MoeLayerWeights weights, Device device) {
    return blockOpsFor(backend)
        .orElseThrow(() ->
            new DeviceException(
                "backend "
                    + backend.name()
                    + " computes on "
                    + backend.deviceType()
                    + ", and nothing on the class path or among the plugins has a router, shared"
                    + " expert and dispatch for such devices: add "
                    + jarFor(backend.deviceType(), "BlockOpsProvider")))
        .provider()
        .prepare(config, weights, device);
  }

  private Optional<FoundBlockOps> blockOpsFor(FoundBackend backend) {
    return blockOps.stream()
        .filter(p -> p.type().equals(backend.deviceType()))
        .min(Comparator.comparingInt(p -> distance(p.origin(), backend.origin())));
  }

  /** Why the parts around a backend's experts could not be computed; empty if they could. */
  List<Reason> blockReasons(FoundBackend backend, MoeConfig config) {
    Optional<FoundBlockOps> found = blockOpsFor(backend);
    if (found.isEmpty()) {
      return List.of(); // preparing says so
    }
    return answer(
        "BlockOpsProvider",
        "the block operations of " + found.get().origin(),
        () -> found.get().provider().isSupportedConfig(config));
  }

  /** Why adapters of a layer on a backend's device could not be held; empty if they could. */
  List<Reason> loraReasons(FoundBackend backend, MoeConfig config) {
    Optional<FoundPunica> found =
        punica.stream()
            .filter(p -> config.lora().isPresent() && p.type().equals(backend.deviceType()))
            .min(Comparator.comparingInt(p -> distance(p.origin(), backend.origin())));
    return found.isEmpty()
        ? List.of() // only backends that leave LoRA to a wrapper need one
        : answer(
            "PunicaProvider",
            "the punica wrappers of " + found.get().origin(),
            () -> found.get().provider().isSupportedConfig(config));
  }

  private static List<Reason> answer(String spi, String who, Supplier<Support> question) {
    try {
      Support support = PluginFault.guard(who, question::get);
      return support == null // strangers are not null-checked
          ? List.of(new Reason(Code.LOAD_FAILURE, spi + "'s isSupportedConfig returned null"))
          : support.reasons();
    } catch (PluginFault e) {
      return List.of(
          new Reason(Code.LOAD_FAILURE, spi + "'s isSupportedConfig failed: " + e.getMessage()));
    }
  }

  private static String noProvider(DeviceType type) {
    return "nothing on the class path or among the plugins opens "
        + type
        + " devices: add "
        + jarFor(type, "DeviceProvider");
  }

  private static String jarFor(DeviceType type, String provider) {
    if (type.equals(DeviceType.CPU)) {
      return "backend-cpu";
    }
    return type.equals(DeviceType.CUDA) ? "moe-cuda" : "the jar with a " + provider + " for it";
  }

  /** Closes the class loaders of the plugins. Harmless when called twice. */
  @Override
  public void close() {
    for (PluginClassLoader loader : loaders) {
      try {
        loader.close();
      } catch (IOException e) {
        LOG.warn("Plugin {} could not be closed: {}", loader.plugin(), e.getMessage());
      }
    }
  }

  @Override
  public String toString() {
    return "BackendCatalog" + backends.stream().map(FoundBackend::name).toList();
  }
}
