package io.moe4j.oracle;

import java.io.IOException;
import java.net.URL;
import java.net.URLClassLoader;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Enumeration;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * The classes of one plugin. Its own jars come first, so that two plugins may carry different
 * versions of one dependency; only what must be the same class on both sides comes from the parent:
 * the API, SLF4J, JSpecify and the JDK's {@code java.*}. What the plugin does not carry is looked
 * up in the parent.
 */
final class PluginClassLoader extends URLClassLoader {
  private static final String API = "io.moe4j.api.";
  private static final String SPI_FILES = "META-INF/services/io.moe4j.api.";

  static {
    registerAsParallelCapable();
  }

  private final String plugin;

  PluginClassLoader(String plugin, List<URL> jars, ClassLoader parent) {
    super("moe4j plugin " + plugin, jars.toArray(URL[]::new), parent);
    this.plugin = plugin;
  }

  /** {@return the name of the entry of the plugins directory} */
  String plugin() {
    return plugin;
  }

  @Override
  protected Class<?> loadClass(String name, boolean resolve) throws ClassNotFoundException {
    if (name.startsWith(API)) {
      // Never a copy that the plugin carries, not even for a class that this moe-api lacks: half
      // an API of another version would fail later and less clearly.
      return getParent().loadClass(name);
    }
    if (name.startsWith("java.")
        || name.startsWith("org.slf4j.")
        || name.startsWith("org.jspecify.")) {
      return super.loadClass(name, resolve);
    }
    synchronized (getClassLoadingLock(name)) {
      Class<?> type = findLoadedClass(name);
      if (type == null) {
        try {
          type = findClass(name);
        } catch (ClassNotFoundException notHere) {
          return getParent().loadClass(name);
        }
      }
      if (resolve) {
        resolveClass(type);
      }
      return type;
    }
  }

  @Override
  public @Nullable URL getResource(String name) {
    URL own = findResource(name);
    return own != null || name.startsWith(SPI_FILES) ? own : getParent().getResource(name);
  }

  @Override
  public Enumeration<URL> getResources(String name) throws IOException {
    List<URL> all = new ArrayList<>(Collections.list(findResources(name)));
    if (!name.startsWith(SPI_FILES)) { // the parent's backends are not this plugin's
      all.addAll(Collections.list(getParent().getResources(name)));
    }
    return Collections.enumeration(all);
  }

  @Override
  public String toString() {
    return "PluginClassLoader[" + plugin + "]";
  }
}
