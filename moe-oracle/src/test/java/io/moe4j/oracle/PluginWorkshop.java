package io.moe4j.oracle;

import io.moe4j.api.spi.ExpertsBackend;
import java.io.IOException;
import java.io.OutputStream;
import java.io.StringWriter;
import java.net.URISyntaxException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.jar.Attributes;
import java.util.jar.JarEntry;
import java.util.jar.JarOutputStream;
import java.util.jar.Manifest;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import javax.tools.JavaCompiler;
import javax.tools.StandardJavaFileManager;
import javax.tools.ToolProvider;

/** Compiles sources and packs jars, so that tests have plugins of every kind, whole and broken. */
final class PluginWorkshop {
  private static final int CLASS_FILE_MAJOR = 7;
  private final Path directory;
  private int count;

  PluginWorkshop(Path directory) {
    this.directory = directory;
  }

  /** Compiles; class names are those of the sources' first public class, {@code a.b.C}. */
  Path compile(Map<String, String> sources, Path... classPath) throws IOException {
    return compile(
        sources, Stream.concat(Stream.of(locationOf(ExpertsBackend.class)), Stream.of(classPath)));
  }

  /** The same with classes in front of the API's, whose places they take. */
  Path compileFirst(Path before, Map<String, String> sources) throws IOException {
    return compile(sources, Stream.of(before, locationOf(ExpertsBackend.class)));
  }

  private Path compile(Map<String, String> sources, Stream<Path> classPath) throws IOException {
    Path in = Files.createDirectories(directory.resolve("src" + count));
    Path out = Files.createDirectories(directory.resolve("classes" + count++));
    List<Path> files = new ArrayList<>();
    for (Map.Entry<String, String> s : sources.entrySet()) {
      Path file = in.resolve(s.getKey().replace('.', '/') + ".java");
      Files.createDirectories(file.getParent());
      Files.writeString(file, s.getValue());
      files.add(file);
    }
    String path =
        classPath
            .map(Path::toString)
            .collect(Collectors.joining(System.getProperty("path.separator")));
    JavaCompiler javac = ToolProvider.getSystemJavaCompiler();
    StringWriter messages = new StringWriter();
    try (StandardJavaFileManager manager = javac.getStandardFileManager(null, null, null)) {
      boolean ok =
          javac
              .getTask(
                  messages,
                  manager,
                  null,
                  List.of("-d", out.toString(), "-cp", path, "-proc:none", "-Xlint:none"),
                  null,
                  manager.getJavaFileObjectsFromPaths(files))
              .call();
      if (!ok) {
        throw new AssertionError("test plugin does not compile: " + messages);
      }
    }
    return out;
  }

  static Path locationOf(Class<?> type) {
    try {
      return Path.of(type.getProtectionDomain().getCodeSource().getLocation().toURI());
    } catch (URISyntaxException e) {
      throw new AssertionError(e);
    }
  }

  /** Packs directories of classes, services files, and a version for the manifest. */
  static void jar(Path jar, String version, Map<String, String> services, Path... classes)
      throws IOException {
    Manifest manifest = new Manifest();
    manifest.getMainAttributes().put(Attributes.Name.MANIFEST_VERSION, "1.0");
    manifest.getMainAttributes().put(Attributes.Name.IMPLEMENTATION_VERSION, version);
    Files.createDirectories(jar.getParent());
    try (OutputStream file = Files.newOutputStream(jar);
        JarOutputStream out = new JarOutputStream(file, manifest)) {
      for (Map.Entry<String, String> s : services.entrySet()) {
        out.putNextEntry(new JarEntry("META-INF/services/" + s.getKey()));
        out.write(s.getValue().getBytes(java.nio.charset.StandardCharsets.UTF_8));
      }
      for (Path root : classes) {
        List<Path> all;
        try (Stream<Path> walk = Files.walk(root)) {
          all = walk.filter(Files::isRegularFile).toList();
        }
        for (Path entry : all) {
          out.putNextEntry(new JarEntry(root.relativize(entry).toString().replace('\\', '/')));
          Files.copy(entry, out);
        }
      }
    }
  }

  /** A jar with one backend. */
  void backendJar(Path jar, String type, String version, String source, Path... more)
      throws IOException {
    jar(
        jar,
        version,
        Map.of(ExpertsBackend.class.getName(), type + "\n"),
        compile(Map.of(type, source), more));
  }

  /** Marks every class under a directory as compiled by a Java of the far future. */
  static void fromTheFuture(Path classes) throws IOException {
    List<Path> all;
    try (Stream<Path> walk = Files.walk(classes)) {
      all = walk.filter(p -> p.toString().endsWith(".class")).toList();
    }
    for (Path p : all) {
      byte[] bytes = Files.readAllBytes(p);
      bytes[CLASS_FILE_MAJOR] = 99;
      Files.write(p, bytes);
    }
  }

  /** The source of a working backend; {@code members} go into its body. */
  static String backend(String type, String name, String description, String members) {
    int dot = type.lastIndexOf('.');
    return """
    package %s;
    import io.moe4j.api.config.*;
    import io.moe4j.api.platform.*;
    import io.moe4j.api.device.*;
    import io.moe4j.api.spi.*;
    import io.moe4j.api.weights.*;
    public class %s implements ExpertsBackend {
      %s
      public String name() { return %s; }
      public String description() { return %s; }
      public DeviceType deviceType() { return DeviceType.CPU; }
      public ActivationFormat activationFormat() { return ActivationFormat.STANDARD; }
      public boolean supportsLora() { return false; }
      public int priority(MoeConfig config, Platform platform) { return 300; }
      public Support isSupportedConfig(MoeConfig config, Platform platform) {
        return Support.yes();
      }
      public Experts prepare(MoeConfig config, ExpertWeights weights, Device device) {
        throw new IllegalStateException("not in this test");
      }
    }
    """
        .formatted(type.substring(0, dot), type.substring(dot + 1), members, name, description);
  }
}
