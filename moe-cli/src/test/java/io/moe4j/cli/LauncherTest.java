package io.moe4j.cli;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.condition.DisabledOnOs;
import org.junit.jupiter.api.condition.OS;
import org.junit.jupiter.api.io.TempDir;

/** The shell script, with a stand-in for Java that says what it was called with. */
@DisabledOnOs(OS.WINDOWS)
final class LauncherTest {
  private static final Path SCRIPT = Path.of("..", "moe").toAbsolutePath().normalize();

  @TempDir Path dir;

  private record Run(int code, String text) {}

  private Path jdk(String name, String version) throws IOException {
    Path home = dir.resolve(name);
    Files.createDirectories(home.resolve("bin"));
    Files.writeString(home.resolve("release"), "JAVA_VERSION=\"" + version + "\"\n");
    executable(
        home.resolve("bin/java"),
        "#!/bin/sh\necho \"java of " + name + "\"\nfor a; do echo \"<$a>\"; done\nexit 5\n");
    return home;
  }

  private static void executable(Path file, String text) throws IOException {
    Files.writeString(file, text);
    Files.setPosixFilePermissions(file, PosixFilePermissions.fromString("rwxr-xr-x"));
  }

  /** An unpacked distribution: the script and a lib folder, no pom.xml. */
  private Path distribution() throws IOException {
    Path dist = Files.createDirectories(dir.resolve("a dist"));
    Files.createDirectories(dist.resolve("lib"));
    Files.copy(SCRIPT, dist.resolve("moe"), java.nio.file.StandardCopyOption.COPY_ATTRIBUTES);
    return dist;
  }

  private Run run(Path script, Map<String, String> environment, String... args) throws Exception {
    java.util.List<String> command = new java.util.ArrayList<>();
    command.add(script.toString());
    command.addAll(java.util.List.of(args));
    ProcessBuilder builder = new ProcessBuilder(command).redirectErrorStream(true);
    builder.directory(dir.toFile());
    builder.environment().keySet().removeIf(k -> k.startsWith("MOE_") || k.equals("JAVA_HOME"));
    builder.environment().put("HOME", dir.toString());
    builder.environment().putAll(environment);
    Process process = builder.start();
    process.getOutputStream().close();
    String text = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
    assertThat(process.waitFor(60, TimeUnit.SECONDS)).isTrue();
    return new Run(process.exitValue(), text);
  }

  @Test
  void passesFlagsArgumentsAndExitCode() throws Exception {
    Path dist = distribution();
    Run r =
        run(
            dist.resolve("moe"),
            Map.of("MOE_JAVA_HOME", jdk("jdk", "25.0.3").toString(), "MOE_JAVA_OPTS", "-Xmx1g -ea"),
            "run",
            "two words",
            "*");
    assertThat(r.code()).isEqualTo(5);
    assertThat(r.text().lines())
        .contains(
            "<--add-modules=jdk.incubator.vector>",
            "<--enable-native-access=ALL-UNNAMED>",
            "<-Xmx1g>",
            "<-ea>",
            "<" + dist.toRealPath().resolve("lib") + "/*>",
            "<io.moe4j.cli.Moe>",
            "<run>",
            "<two words>",
            "<*>");
  }

  @Test
  void worksThroughLinksOfLinks() throws Exception {
    Path dist = distribution();
    Path bin = Files.createDirectory(dir.resolve("bin"));
    Files.createSymbolicLink(bin.resolve("one"), Path.of("..", "a dist", "moe"));
    Files.createSymbolicLink(bin.resolve("two"), bin.resolve("one"));
    Run r = run(bin.resolve("two"), Map.of("MOE_JAVA_HOME", jdk("jdk", "26").toString()), "doctor");
    assertThat(r.text()).contains(dist.toRealPath() + "/lib/*", "<doctor>");
  }

  @Test
  void javaHomeComesBeforeThePathAndOldOnesAreSkipped() throws Exception {
    Path dist = distribution();
    Path good = jdk("good", "25");
    Path old = jdk("old", "17.0.1");
    Run r =
        run(
            dist.resolve("moe"),
            Map.of("JAVA_HOME", old.toString(), "PATH", good.resolve("bin") + ":/usr/bin:/bin"));
    assertThat(r.text()).contains("java of good");
    Run home =
        run(
            dist.resolve("moe"),
            Map.of("JAVA_HOME", good.toString(), "PATH", old.resolve("bin") + ":/usr/bin:/bin"));
    assertThat(home.text()).contains("java of good");
  }

  @Test
  void anUnusableMoeJavaHomeIsAnError() throws Exception {
    Path dist = distribution();
    Run old = run(dist.resolve("moe"), Map.of("MOE_JAVA_HOME", jdk("old", "17.0.1").toString()));
    assertThat(old.code()).isEqualTo(1);
    assertThat(old.text()).contains("holds Java 17; moe needs a JDK 25 or later");
    Run none = run(dist.resolve("moe"), Map.of("MOE_JAVA_HOME", dir.resolve("nothing").toString()));
    assertThat(none.code()).isEqualTo(1);
    assertThat(none.text()).contains("holds no Java;");
  }

  @Test
  void neitherTreeNorDistributionIsAnError() throws Exception {
    Path alone = Files.createDirectory(dir.resolve("alone"));
    Files.copy(SCRIPT, alone.resolve("moe"), java.nio.file.StandardCopyOption.COPY_ATTRIBUTES);
    Run r = run(alone.resolve("moe"), Map.of("MOE_JAVA_HOME", jdk("jdk", "25").toString()));
    assertThat(r.code()).isEqualTo(1);
    assertThat(r.text()).contains("neither a source tree nor an unpacked distribution");
  }
}
