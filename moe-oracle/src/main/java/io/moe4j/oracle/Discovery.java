package io.moe4j.oracle;

import io.moe4j.api.MoeException;
import io.moe4j.api.comm.CommProvider;
import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.device.DeviceProvider;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.spi.BlockOpsProvider;
import io.moe4j.api.spi.ExpertExchangeProvider;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.api.spi.PunicaProvider;
import java.io.IOException;
import java.io.InputStream;
import java.lang.reflect.Modifier;
import java.net.MalformedURLException;
import java.net.URL;
import java.net.URLConnection;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashSet;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Optional;
import java.util.ServiceLoader;
import java.util.Set;
import java.util.Spliterator;
import java.util.jar.JarEntry;
import java.util.jar.JarFile;
import java.util.regex.Pattern;
import java.util.stream.Stream;

/**
 * One run of discovery. Providers in named modules are found by {@link ServiceLoader}; those on the
 * class path and in plugins through their {@code META-INF/services} files, which mean here what
 * they mean to ServiceLoader but are read one by one, because ServiceLoader does not tell which jar
 * named the provider that failed.
 */
final class Discovery {
  private static final Pattern NAME = Pattern.compile("[a-z0-9][a-z0-9-]*");
  private static final int MAX_MODULE_ERRORS = 100;

  /** A services file is a few lines. A jar of megabytes can hold one of gigabytes. */
  private static final int MAX_SERVICES_BYTES = 1 << 20;

  private static final int MAX_SERVICES_NAMES = 1000;
  private static final int MAX_SHOWN_SERVICES = 5;

  final List<FoundBackend> backends = new ArrayList<>();
  final List<FoundDeviceProvider> deviceProviders = new ArrayList<>();
  final List<FoundBlockOps> blockOps = new ArrayList<>();
  final List<FoundPunica> punica = new ArrayList<>();
  final List<ExpertExchangeProvider> exchanges = new ArrayList<>();
  final List<CommProvider> comms = new ArrayList<>();
  final List<PluginFailure> failures = new ArrayList<>();
  final List<PluginClassLoader> loaders = new ArrayList<>();

  private final Set<Class<?>> seenTypes = new HashSet<>();
  private final Set<String> seenEntries = new HashSet<>();
  private int repeated;

  /** Everything in the named modules of this class's layer. */
  void scanModules() {
    ModuleLayer layer = Discovery.class.getModule().getLayer();
    if (layer == null) {
      layer = ModuleLayer.boot();
    }
    scanModules(ServiceLoader.load(layer, ExpertsBackend.class), this::addBackend);
    scanModules(ServiceLoader.load(layer, DeviceProvider.class), this::addDeviceProvider);
    scanModules(ServiceLoader.load(layer, BlockOpsProvider.class), this::addBlockOps);
    scanModules(ServiceLoader.load(layer, PunicaProvider.class), this::addPunica);
    scanModules(ServiceLoader.load(layer, ExpertExchangeProvider.class), this::addExchange);
    scanModules(ServiceLoader.load(layer, CommProvider.class), this::addComm);
  }

  private <S> void scanModules(ServiceLoader<S> providers, Adder<S> adder) {
    Spliterator<ServiceLoader.Provider<S>> all = providers.stream().spliterator();
    boolean more = true;
    // ServiceLoader goes on behind a provider that fails; the bound is for the case that it cannot.
    for (int errors = 0; more && errors < MAX_MODULE_ERRORS; ) {
      try {
        more =
            PluginFault.guard(
                "the module path",
                () ->
                    all.tryAdvance(p -> {
                      Class<? extends S> type = p.type();
                      if (seenTypes.add(type)) {
                        add(type.getName(), PluginOrigin.of(type), p::get, adder);
                      }
                    }));
      } catch (PluginFault e) {
        errors++;
        PluginOrigin modulePath =
            new PluginOrigin(PluginOrigin.MODULE_PATH, Optional.empty(), Optional.empty());
        failures.add(
            PluginFailure.of(
                PluginOrigin.MODULE_PATH,
                modulePath,
                String.valueOf(e.getMessage()),
                e.getCause()));
      }
    }
  }

  /** Everything that a class loader's services files name. */
  void scanLoader(ClassLoader loader) {
    scanLoader(loader, ExpertsBackend.class, this::addBackend);
    scanLoader(loader, DeviceProvider.class, this::addDeviceProvider);
    scanLoader(loader, BlockOpsProvider.class, this::addBlockOps);
    scanLoader(loader, PunicaProvider.class, this::addPunica);
    scanLoader(loader, ExpertExchangeProvider.class, this::addExchange);
    scanLoader(loader, CommProvider.class, this::addComm);
  }

  private <S> void scanLoader(ClassLoader loader, Class<S> service, Adder<S> adder) {
    String resource = "META-INF/services/" + service.getName();
    List<URL> files;
    try {
      files = Collections.list(loader.getResources(resource));
    } catch (IOException e) {
      failures.add(
          PluginFailure.of(
              resource,
              new PluginOrigin(PluginOrigin.CLASS_PATH, Optional.empty(), Optional.empty()),
              "cannot be looked up: " + e.getMessage(),
              e));
      return;
    }
    for (URL file : files) {
      PluginOrigin origin = PluginOrigin.ofServicesFile(file, resource, loader);
      Set<String> names;
      try {
        names = read(file);
      } catch (IOException e) {
        if (seenEntries.add(file.toExternalForm())) {
          failures.add(PluginFailure.of(resource, origin, "cannot be read: " + e.getMessage(), e));
        }
        continue;
      }
      if (names.isEmpty() && seenEntries.add(file.toExternalForm())) {
        failures.add(
            PluginFailure.of(origin.shortLocation(), origin, resource + " names no class", null));
      }
      for (String name : names) {
        // Two class loaders of one application see the same files.
        if (seenEntries.add(file.toExternalForm() + " " + name)) {
          instantiate(loader, service, name, origin, adder);
        } else {
          repeated++;
        }
      }
    }
  }

  private static Set<String> read(URL file) throws IOException {
    URLConnection connection = file.openConnection();
    connection.setUseCaches(false); // a cached jar would stay open after its class loader closed
    Set<String> names = new LinkedHashSet<>();
    byte[] bytes;
    try (InputStream in = connection.getInputStream()) {
      bytes = in.readNBytes(MAX_SERVICES_BYTES + 1);
    }
    if (bytes.length > MAX_SERVICES_BYTES) {
      throw new IOException("it is longer than " + MAX_SERVICES_BYTES + " bytes");
    }
    for (String line : new String(bytes, StandardCharsets.UTF_8).lines().toList()) {
      int comment = line.indexOf('#');
      String name = (comment < 0 ? line : line.substring(0, comment)).strip();
      if (!name.isEmpty()) {
        names.add(name);
      }
      if (names.size() > MAX_SERVICES_NAMES) {
        throw new IOException("it names more than " + MAX_SERVICES_NAMES + " classes");
      }
    }
    return names;
  }

  private <S> void instantiate(
      ClassLoader loader, Class<S> service, String name, PluginOrigin named, Adder<S> adder) {
    Class<?> type;
    try {
      type = PluginFault.guard(waiting(name, named), () -> Class.forName(name, false, loader));
    } catch (PluginFault e) {
      boolean itself =
          e.getCause() instanceof ClassNotFoundException && name.equals(cause(e).getMessage());
      failures.add(
          PluginFailure.of(
              name,
              named,
              itself
                  ? "named in META-INF/services/"
                      + service.getName()
                      + " but not there; a line there is the full name of a class, a nested one's"
                      + " like com.acme.Outer$Inner"
                  : "cannot be loaded: " + e.getMessage(),
              e.getCause()));
      return;
    }
    if (!seenTypes.add(type)) {
      return; // the module scan has it, or another loader led to the same class
    }
    Module module = type.getModule();
    if (module.isNamed()) {
      if (!provides(module, service, name)) {
        failures.add(
            PluginFailure.of(
                name,
                PluginOrigin.of(type),
                "named in META-INF/services, which is not looked at in module "
                    + module.getName()
                    + "; add to its module-info: provides "
                    + service.getName()
                    + " with "
                    + name,
                null));
      }
      return;
    }
    PluginOrigin origin = PluginOrigin.of(type);
    if (!service.isAssignableFrom(type)) {
      failures.add(PluginFailure.of(name, origin, "does not implement " + service.getName(), null));
      return;
    }
    if (!Modifier.isPublic(type.getModifiers()) || Modifier.isAbstract(type.getModifiers())) {
      failures.add(
          PluginFailure.of(name, origin, "must be a public class that is not abstract", null));
      return;
    }
    add(
        name,
        origin,
        () -> {
          try {
            return service.cast(type.getConstructor().newInstance());
          } catch (NoSuchMethodException e) {
            throw new NoSuchMethodException("no public constructor without arguments");
          }
        },
        adder);
  }

  private static boolean provides(Module module, Class<?> service, String name) {
    return module.getDescriptor().provides().stream()
        .anyMatch(p -> p.service().equals(service.getName()) && p.providers().contains(name));
  }

  private static Throwable cause(PluginFault e) {
    return e.getCause() == null ? e : e.getCause();
  }

  private interface Adder<S> {
    void add(S provider, PluginOrigin origin) throws PluginFault, Refusal;
  }

  /** A provider that works but breaks the contract. */
  private static final class Refusal extends Exception {
    private static final long serialVersionUID = 1L;

    Refusal(String message) {
      super(message);
    }
  }

  private <S> void add(
      String name, PluginOrigin origin, PluginFault.Call<S> construct, Adder<S> adder) {
    S provider;
    try {
      provider = PluginFault.guard(waiting(name, origin), construct);
    } catch (PluginFault e) {
      failures.add(
          PluginFailure.of(name, origin, "cannot be created: " + e.getMessage(), e.getCause()));
      return;
    }
    try {
      adder.add(provider, origin);
    } catch (PluginFault e) {
      failures.add(
          PluginFailure.of(
              name, origin, "failed when asked what it is: " + e.getMessage(), e.getCause()));
    } catch (Refusal e) {
      failures.add(PluginFailure.of(name, origin, String.valueOf(e.getMessage()), null));
    }
  }

  private void addBackend(ExpertsBackend backend, PluginOrigin origin) throws PluginFault, Refusal {
    String who = waiting(backend.getClass().getName(), origin);
    String name = answer("name()", PluginFault.guard(who, backend::name));
    if (!NAME.matcher(name).matches()) {
      throw new Refusal(
          "name() is \"" + name + "\", must be lower-case letters, digits and dashes");
    }
    String description = answer("description()", PluginFault.guard(who, backend::description));
    DeviceType device = answer("deviceType()", PluginFault.guard(who, backend::deviceType));
    ActivationFormat format =
        answer("activationFormat()", PluginFault.guard(who, backend::activationFormat));
    boolean lora = PluginFault.guard(who, backend::supportsLora);
    backends.add(new FoundBackend(backend, name, description, device, format, lora, origin));
  }

  private void addDeviceProvider(DeviceProvider provider, PluginOrigin origin)
      throws PluginFault, Refusal {
    DeviceType type =
        answer(
            "type()",
            PluginFault.guard(waiting(provider.getClass().getName(), origin), provider::type));
    deviceProviders.add(new FoundDeviceProvider(provider, type, origin));
  }

  private static String waiting(String name, PluginOrigin origin) {
    return name + " from " + origin;
  }

  private void addBlockOps(BlockOpsProvider provider, PluginOrigin origin)
      throws PluginFault, Refusal {
    DeviceType type =
        answer(
            "deviceType()",
            PluginFault.guard(
                waiting(provider.getClass().getName(), origin), provider::deviceType));
    blockOps.add(new FoundBlockOps(provider, type, origin));
  }

  private void addPunica(PunicaProvider provider, PluginOrigin origin) throws PluginFault, Refusal {
    DeviceType type =
        answer(
            "deviceType()",
            PluginFault.guard(
                waiting(provider.getClass().getName(), origin), provider::deviceType));
    punica.add(new FoundPunica(provider, type, origin));
  }

  private void addExchange(ExpertExchangeProvider provider, PluginOrigin origin)
      throws PluginFault, Refusal {
    answer(
        "name()",
        PluginFault.guard(waiting(provider.getClass().getName(), origin), provider::name));
    exchanges.add(provider);
  }

  private void addComm(CommProvider provider, PluginOrigin origin) throws PluginFault, Refusal {
    answer(
        "name()",
        PluginFault.guard(waiting(provider.getClass().getName(), origin), provider::name));
    comms.add(provider);
  }

  private static <T> T answer(String method, T value) throws Refusal {
    if (value == null) { // strangers are not null-checked
      throw new Refusal(method + " is null");
    }
    return value;
  }

  /** Adds providers that the caller made. */
  void addGiven(
      List<? extends ExpertsBackend> given,
      List<? extends DeviceProvider> devices,
      List<? extends BlockOpsProvider> blocks) {
    for (ExpertsBackend b : given) {
      add(b.getClass().getName(), PluginOrigin.of(b.getClass()), () -> b, this::addBackend);
    }
    for (DeviceProvider d : devices) {
      add(d.getClass().getName(), PluginOrigin.of(d.getClass()), () -> d, this::addDeviceProvider);
    }
    for (BlockOpsProvider b : blocks) {
      add(b.getClass().getName(), PluginOrigin.of(b.getClass()), () -> b, this::addBlockOps);
    }
  }

  /** Each jar, and each sub-directory with its jars, is a plugin. */
  void scanPlugins(Path directory, ClassLoader parent) {
    for (Path entry : list(directory)) {
      String name = String.valueOf(entry.getFileName());
      if (name.startsWith(".")) {
        continue;
      }
      if (Files.isDirectory(entry)) {
        List<Path> jars;
        try {
          jars = list(entry).stream().filter(Discovery::isJar).toList();
        } catch (MoeException e) {
          failures.add(
              PluginFailure.of(
                  name, at(entry, name), String.valueOf(e.getMessage()), e.getCause()));
          continue;
        }
        scanPlugin(name, entry, jars, parent);
      } else if (isJar(entry)) {
        scanPlugin(name, entry, List.of(entry), parent);
      }
    }
  }

  private void scanPlugin(String name, Path where, List<Path> jars, ClassLoader parent) {
    PluginOrigin origin = at(where, name);
    if (jars.isEmpty()) {
      failures.add(PluginFailure.of(name, origin, "the directory holds no jar", null));
      return;
    }
    List<URL> urls = new ArrayList<>();
    for (Path jar : jars) {
      try {
        new JarFile(jar.toFile()).close(); // reads the directory of the jar
        urls.add(jar.toUri().toURL());
      } catch (IOException e) {
        // A class loader would pass over it in silence.
        String what = e instanceof MalformedURLException ? "has no URL" : "is not a readable jar";
        failures.add(
            PluginFailure.of(
                String.valueOf(jar.getFileName()), at(jar, name), what + ": " + e.getMessage(), e));
        return;
      }
    }
    PluginClassLoader loader = new PluginClassLoader(name, urls, parent);
    loaders.add(loader);
    int before = found();
    int repeatedBefore = repeated;
    scanLoader(loader);
    if (found() == before) {
      String why =
          repeated > repeatedBefore
              ? "is on the class path as well, and was taken from there; leave it in one place"
              : "names no backend and no device provider: a backend's class stands in"
                  + " META-INF/services/"
                  + ExpertsBackend.class.getName()
                  + servicesOf(jars)
                  + "; jars that a plugin needs go with it into one sub-directory";
      failures.add(PluginFailure.of(name, origin, why, null));
    }
  }

  /** What could have been meant: a services file of another name is otherwise invisible. */
  private static String servicesOf(List<Path> jars) {
    Set<String> files = new LinkedHashSet<>();
    for (Path jar : jars) {
      try (JarFile file = new JarFile(jar.toFile())) {
        file.stream()
            .map(JarEntry::getName)
            .filter(n -> n.startsWith("META-INF/service") && !n.endsWith("/"))
            .limit(MAX_SHOWN_SERVICES)
            .forEach(files::add);
      } catch (IOException e) {
        return ""; // it was readable a moment ago
      }
    }
    return files.isEmpty() ? ", and there is no such file" : ", and there is only " + files;
  }

  private int found() {
    return backends.size()
        + deviceProviders.size()
        + blockOps.size()
        + punica.size()
        + exchanges.size()
        + comms.size()
        + failures.size();
  }

  private static PluginOrigin at(Path where, String plugin) {
    return new PluginOrigin(where.toString(), Optional.empty(), Optional.of(plugin));
  }

  private static boolean isJar(Path p) {
    return String.valueOf(p.getFileName()).endsWith(".jar") && Files.isRegularFile(p);
  }

  private static List<Path> list(Path directory) {
    if (!Files.isDirectory(directory)) {
      throw new MoeException("plugins directory " + directory + " is not a directory");
    }
    try (Stream<Path> entries = Files.list(directory)) {
      return entries.sorted().toList();
    } catch (IOException e) {
      throw new MoeException("directory " + directory + " cannot be listed: " + e.getMessage(), e);
    }
  }
}
