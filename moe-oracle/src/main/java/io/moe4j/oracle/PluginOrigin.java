package io.moe4j.oracle;

import java.net.URI;
import java.net.URISyntaxException;
import java.net.URL;
import java.nio.file.FileSystemNotFoundException;
import java.nio.file.Path;
import java.security.CodeSource;
import java.util.Objects;
import java.util.Optional;

/**
 * Where a provider came from, as messages name it.
 *
 * @param location path of the jar or of the directory of classes; {@value #CLASS_PATH} where
 *     nothing more is known
 * @param version {@code Implementation-Version} of the jar's manifest or the version of its module
 * @param plugin name of the entry of the plugins directory, empty for the class or module path
 */
public record PluginOrigin(String location, Optional<String> version, Optional<String> plugin) {
  /** The location of classes that do not say where they came from. */
  public static final String CLASS_PATH = "class path";

  /** The location of a module's provider that could not even be looked at. */
  public static final String MODULE_PATH = "module path";

  /**
   * Checks the components.
   *
   * @param location path or {@value #CLASS_PATH}
   * @param version from manifest or module
   * @param plugin entry of the plugins directory
   */
  public PluginOrigin {
    Objects.requireNonNull(location, "location");
    Objects.requireNonNull(version, "version");
    Objects.requireNonNull(plugin, "plugin");
  }

  static PluginOrigin of(Class<?> type) {
    String location = CLASS_PATH;
    CodeSource source = type.getProtectionDomain().getCodeSource();
    if (source != null && source.getLocation() != null) {
      location = path(source.getLocation());
    }
    Optional<String> version = Optional.empty();
    Module module = type.getModule();
    if (module.isNamed()) {
      version = module.getDescriptor().rawVersion();
    }
    if (version.isEmpty()) {
      version = Optional.ofNullable(type.getPackage().getImplementationVersion());
    }
    return new PluginOrigin(location, version, pluginOf(type.getClassLoader()));
  }

  /** The origin of a services file: the jar or the directory that holds it. */
  static PluginOrigin ofServicesFile(URL file, String resource, ClassLoader loader) {
    String text = file.toExternalForm();
    String location = path(file);
    if (text.endsWith(resource)) {
      String root = text.substring(0, text.length() - resource.length());
      if (root.startsWith("jar:") && root.endsWith("!/")) {
        root = root.substring("jar:".length(), root.length() - "!/".length());
      }
      try {
        location = path(new URI(root).toURL());
      } catch (URISyntaxException | java.net.MalformedURLException | IllegalArgumentException e) {
        location = root;
      }
    }
    return new PluginOrigin(location, Optional.empty(), pluginOf(loader));
  }

  private static Optional<String> pluginOf(ClassLoader loader) {
    return loader instanceof PluginClassLoader p ? Optional.of(p.plugin()) : Optional.empty();
  }

  private static String path(URL url) {
    try {
      return Path.of(url.toURI()).toString();
    } catch (URISyntaxException | FileSystemNotFoundException | IllegalArgumentException e) {
      return url.toExternalForm(); // not a file: a jar inside a jar, the run-time image
    }
  }

  /** {@return the last part of the location, enough to tell jars apart in a table} */
  public String shortLocation() {
    int slash = Math.max(location.lastIndexOf('/'), location.lastIndexOf('\\'));
    boolean classes = !location.endsWith(".jar");
    return slash < 0 || classes ? location : location.substring(slash + 1);
  }

  /**
   * Like {@code /plugins/x-1.2.jar (1.2)}.
   *
   * @return location and version
   */
  @Override
  public String toString() {
    return location + version.map(v -> " (" + v + ")").orElse("");
  }
}
