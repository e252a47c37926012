package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.fail;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.backend.cpu.CpuDeviceProvider;
import io.moe4j.oracle.MoeOracle;
import io.moe4j.reference.HostDevice;
import io.moe4j.tck.ExpertsConformanceTest;
import java.io.File;
import java.io.IOException;
import java.net.URISyntaxException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.jspecify.annotations.NullMarked;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.slf4j.Logger;

/**
 * Strangers' Maven projects, {@code out-of-tree/plain-experts} and {@code out-of-tree/acme-device}:
 * built by a Maven of their own against the jars of this build, which are laid into an empty local
 * repository, so that nothing but published artifacts is on their path, and no backend; their own
 * tests run the conformance kits. Then the jar of the first is dropped where jars are dropped, each
 * time in a fresh JVM.
 */
class OutOfTreeBackendIT {
  private static final Path WORK = Path.of("target", "out-of-tree").toAbsolutePath();
  private static final Path PROJECT = WORK.resolve("plain-experts");
  private static final Path REPOSITORY = WORK.resolve("repository");
  private static final String VERSION = property("moe.version");

  private static String property(String name) {
    String value = System.getProperty(name, "");
    assertThat(value).as("system property %s, set by the pom", name).isNotEmpty();
    return value;
  }

  private static Path plugin() {
    return PROJECT.resolve("target/plain-experts-1.0.0.jar");
  }

  @BeforeAll
  static void strangerBuilds() throws Exception {
    deleteTree(WORK);
    publish("moe-parent", Path.of("..", "pom.xml"), null);
    publish("moe-api", Path.of("..", "moe-api", "pom.xml"), jarOf(MoeConfig.class));
    publish("moe-reference", Path.of("..", "moe-reference", "pom.xml"), jarOf(HostDevice.class));
    publish("moe-tck", Path.of("..", "moe-tck", "pom.xml"), jarOf(ExpertsConformanceTest.class));

    assertThat(build("plain-experts")).contains("BUILD SUCCESS").contains("PlainBackendTest");
    assertThat(plugin()).exists();
  }

  private static String build(String project) throws Exception {
    copyTree(Path.of("out-of-tree", project), WORK.resolve(project));
    Path maven = Path.of(property("moe.maven.home"), "bin", windows() ? "mvn.cmd" : "mvn");
    return run(
        project + ".log",
        List.of(
            maven.toString(),
            "--batch-mode",
            "--settings",
            settings().toString(),
            "--file",
            WORK.resolve(project).resolve("pom.xml").toString(),
            "-Dmoe.version=" + VERSION,
            "package"));
  }

  /** Another vendor's accelerator, without a change in this tree. */
  @Test
  void anotherDevicePassesBothKits() throws Exception {
    assertThat(build("acme-device")).contains("BUILD SUCCESS");
    for (String test : List.of("AcmeBackendTest", "AcmeBlockOpsTest")) {
      String report =
          Files.readString(
              WORK.resolve(
                  "acme-device/target/surefire-reports/com.example.acme." + test + ".txt"));
      assertThat(report).contains("Failures: 0, Errors: 0").doesNotContain("Tests run: 0");
    }
  }

  /** Plugins come from the local repository that this build itself uses, else from Central. */
  private static Path settings() throws IOException {
    String cache = Path.of(property("moe.local.repository")).toUri().toString();
    String repositories =
        """
        <%1$s><id>cache</id><url>%2$s</url></%1$s>
        <%1$s><id>central</id><url>https://repo.maven.apache.org/maven2</url></%1$s>
        """;
    return Files.writeString(
        WORK.resolve("settings.xml"),
        """
        <settings>
          <localRepository>%s</localRepository>
          <profiles><profile><id>stranger</id>
            <repositories>%s</repositories>
            <pluginRepositories>%s</pluginRepositories>
          </profile></profiles>
          <activeProfiles><activeProfile>stranger</activeProfile></activeProfiles>
        </settings>
        """
            .formatted(
                REPOSITORY,
                repositories.formatted("repository", cache),
                repositories.formatted("pluginRepository", cache)));
  }

  /** The conformance kit ran in the stranger's build: something passed, something was refused. */
  @Test
  void strangerPassesTheConformanceKit() throws IOException {
    String report =
        Files.readString(
            PROJECT.resolve("target/surefire-reports/com.example.plain.PlainBackendTest.txt"));
    assertThat(report).contains("Failures: 0, Errors: 0").doesNotContain("Tests run: 0");
  }

  @Test
  void onTheClassPath() throws Exception {
    String out = probe("class-path.log", List.of(plugin()));
    assertThat(out)
        .contains("ran on com.example.plain.PlainBackend in unnamed module")
        .contains("chosen: plain-experts")
        .contains("1.0.0")
        .contains("largest difference below 1e-4");
  }

  @Test
  void inAPluginsDirectory() throws Exception {
    Path plugins = Files.createDirectories(WORK.resolve("plugins"));
    Files.copy(plugin(), plugins.resolve("plain-experts.jar"), StandardCopyOption.REPLACE_EXISTING);
    String out = probe("plugins.log", List.of(), plugins.toString());
    assertThat(out)
        .contains("ran on com.example.plain.PlainBackend")
        .contains("chosen: plain-experts")
        .contains("plain-experts.jar")
        .contains("1.0.0")
        .contains("largest difference below 1e-4");
  }

  @Test
  void removedAgain() throws Exception {
    String out = probe("removed.log", List.of());
    assertThat(out)
        .contains("ran on io.moe4j.backend.cpu.CpuExpertsBackend")
        .doesNotContain("plain-experts")
        .contains("largest difference below 1e-4");
  }

  /** All jars are named modules; {@code provides} and {@code uses} do it, not service files. */
  @Test
  void onTheModulePath() throws Exception {
    List<Path> modules = new ArrayList<>(ours());
    modules.add(plugin());
    List<String> command = java();
    command.addAll(
        List.of("--module-path", path(modules), "--add-modules", "ALL-MODULE-PATH", "-cp"));
    command.add(Path.of("target", "test-classes").toAbsolutePath().toString());
    command.add(PluginProbe.class.getName());
    assertThat(run("module-path.log", command))
        .contains("ran on com.example.plain.PlainBackend in module com.example.plain")
        .contains("largest difference below 1e-4");
  }

  private static String probe(String log, List<Path> more, String... args) throws Exception {
    List<Path> jars = new ArrayList<>(ours());
    jars.addAll(more);
    List<String> command = java();
    command.add("-cp");
    command.add(
        path(jars) + File.pathSeparator + Path.of("target", "test-classes").toAbsolutePath());
    command.add(PluginProbe.class.getName());
    command.addAll(List.of(args));
    return run(log, command);
  }

  private static List<String> java() {
    return new ArrayList<>(
        List.of(
            Path.of(System.getProperty("java.home"), "bin", "java").toString(),
            "--add-modules=jdk.incubator.vector",
            "-Xmx256m"));
  }

  /** What an application has: API, oracle, CPU backend and what those need. */
  private static List<Path> ours() {
    return List.of(
        jarOf(MoeConfig.class),
        jarOf(MoeOracle.class),
        jarOf(CpuDeviceProvider.class),
        jarOf(HostDevice.class),
        jarOf(Logger.class),
        jarOf(NullMarked.class));
  }

  private static Path jarOf(Class<?> type) {
    try {
      Path jar = Path.of(type.getProtectionDomain().getCodeSource().getLocation().toURI());
      assertThat(jar).as("%s must come from a jar: run mvn verify", type).isRegularFile();
      return jar;
    } catch (URISyntaxException e) {
      throw new IllegalStateException(e);
    }
  }

  private static String path(List<Path> jars) {
    return jars.stream().map(Path::toString).collect(Collectors.joining(File.pathSeparator));
  }

  /** What {@code mvn install} would leave behind. */
  private static void publish(String artifact, Path pom, @Nullable Path jar) throws IOException {
    Path to =
        Files.createDirectories(REPOSITORY.resolve(Path.of("io", "moe4j", artifact, VERSION)));
    Files.copy(pom, to.resolve(artifact + "-" + VERSION + ".pom"));
    if (jar != null) {
      Files.copy(jar, to.resolve(artifact + "-" + VERSION + ".jar"));
    }
  }

  private static boolean windows() {
    return File.separatorChar == '\\';
  }

  private static String run(String log, List<String> command) throws Exception {
    Path output = WORK.resolve(log);
    ProcessBuilder builder =
        new ProcessBuilder(command).redirectErrorStream(true).redirectOutput(output.toFile());
    builder.environment().put("JAVA_HOME", System.getProperty("java.home"));
    builder.environment().remove("MAVEN_OPTS");
    Process process = builder.start();
    if (!process.waitFor(15, TimeUnit.MINUTES)) {
      process.destroyForcibly();
      fail("%s did not end, see %s", command, output);
    }
    String text = Files.readString(output);
    assertThat(process.exitValue()).as("%s%n%s", command, text).isZero();
    return text;
  }

  private static void copyTree(Path from, Path to) throws IOException {
    try (Stream<Path> files = Files.walk(from)) {
      for (Path file : (Iterable<Path>) files::iterator) {
        Path relative = from.relativize(file);
        if (Files.isRegularFile(file) && !relative.startsWith("target")) {
          Path target = to.resolve(relative);
          Files.createDirectories(target.getParent());
          Files.copy(file, target);
        }
      }
    }
  }

  private static void deleteTree(Path root) throws IOException {
    if (!Files.exists(root)) {
      return;
    }
    try (Stream<Path> files = Files.walk(root)) {
      for (Path file : files.sorted(java.util.Comparator.reverseOrder()).toList()) {
        Files.delete(file);
      }
    }
  }
}
