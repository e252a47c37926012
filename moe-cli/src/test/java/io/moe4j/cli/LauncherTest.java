package io.moe4j.cli;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.condition.DisabledOnOs;
import org.junit.jupiter.api.condition.OS;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

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
    List<String> command = new ArrayList<>();
    command.add(script.toString());
    command.addAll(List.of(args));
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

  /** A JVM takes one: what the environment names stands. */
  @ParameterizedTest
  @ValueSource(
      strings = {"JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "MOE_JAVA_OPTS"})
  void namesNoCollectorBesideTheUsers(String variable) throws Exception {
    Path moe = distribution().resolve("moe");
    String jdk = jdk("jdk", "25.0.3").toString();
    String ours = "<-XX:+UseParallelGC>";
    Run own = run(moe, Map.of("MOE_JAVA_HOME", jdk, variable, "-Xmx1g -XX:+UseG1GC"), "run");
    assertThat(own.text().lines()).doesNotContain(ours);
    Run other = run(moe, Map.of("MOE_JAVA_HOME", jdk, variable, "-Xmx1g"), "run");
    assertThat(other.text().lines()).contains(ours);
  }

  /** On a terminal both streams have its width. */
  @Test
  void tellsJavaHowWideTheTerminalIs() throws Exception {
    Path script = Path.of("/usr/bin/script");
    org.junit.jupiter.api.Assumptions.assumeTrue(
        Files.isExecutable(script) && System.getProperty("os.name").equals("Linux"),
        "script(1), which makes a terminal");
    Path dist = distribution();
    Run r =
        run(
            script,
            Map.of("MOE_JAVA_HOME", jdk("jdk", "25.0.3").toString()),
            "-qec",
            "stty cols 61 rows 20; '" + dist.resolve("moe") + "' backends",
            "/dev/null");
    assertThat(r.text().lines())
        .contains("<-Dmoe.terminal.columns=61>", "<-Dmoe.terminal.out.columns=61>");
  }

  /** A source tree that was never built, with a Maven that only makes the folder. */
  private Path tree() throws IOException {
    return tree("tree");
  }

  private Path tree(String name) throws IOException {
    Path tree = Files.createDirectories(dir.resolve(name));
    Files.writeString(tree.resolve("pom.xml"), "<project/>");
    Files.createDirectories(tree.resolve("moe-cli/target"));
    Files.copy(SCRIPT, tree.resolve("moe"), java.nio.file.StandardCopyOption.COPY_ATTRIBUTES);
    executable(
        dir.resolve("mvn"),
        "#!/bin/sh\necho built >>"
            + dir.resolve("builds")
            + "\nmkdir -p moe-cli/target/dist/lib\n"
            + "touch moe-cli/target/dist/lib/moe-cli-0.jar\n");
    return tree;
  }

  private Run runTree(Path tree) throws Exception {
    Path jdk = jdk("jdk", "25");
    executable(jdk.resolve("bin/javac"), "#!/bin/sh\n");
    return runTree(tree, jdk);
  }

  private Run runTree(Path tree, Path jdk) throws Exception {
    return run(
        tree.resolve("moe"),
        Map.of("MOE_JAVA_HOME", jdk.toString(), "MOE_MVN", dir.resolve("mvn").toString()),
        "doctor");
  }

  @Test
  void locksOfDeadBuildsAreBroken() throws Exception {
    List<String> pids = List.of("no file", "", "1", "999999999", "not a number");
    // Side by side: the script waits some seconds before it breaks a lock without a number.
    try (var pool = java.util.concurrent.Executors.newFixedThreadPool(pids.size())) {
      List<java.util.concurrent.Future<Run>> runs = new ArrayList<>();
      List<Path> trees = new ArrayList<>();
      for (String pid : pids) {
        Path tree = tree("tree" + pids.indexOf(pid));
        Path lock = Files.createDirectories(tree.resolve("moe-cli/target/.building"));
        if (!pid.equals("no file")) {
          Files.writeString(lock.resolve("pid"), pid);
        }
        trees.add(tree);
      }
      Path jdk = jdk("jdk", "25");
      executable(jdk.resolve("bin/javac"), "#!/bin/sh\n");
      for (Path tree : trees) {
        runs.add(pool.submit(() -> runTree(tree, jdk)));
      }
      for (int i = 0; i < runs.size(); i++) {
        Run r = runs.get(i).get();
        assertThat(r.code()).as("%s: %s", pids.get(i), r.text()).isEqualTo(5);
        assertThat(r.text()).contains("java of jdk");
        assertThat(trees.get(i).resolve("moe-cli/target/.building")).doesNotExist();
      }
    }
  }

  @Test
  void theScriptsOwnNumberInALockIsNobodys() throws Exception {
    Path tree = tree();
    Path lock = Files.createDirectories(tree.resolve("moe-cli/target/.building"));
    Path jdk = jdk("jdk", "25");
    executable(jdk.resolve("bin/javac"), "#!/bin/sh\n");
    Path wrapper = dir.resolve("restart");
    executable(
        wrapper,
        "#!/bin/sh\necho $$ >"
            + lock.resolve("pid")
            + "\nexec "
            + tree.resolve("moe")
            + " doctor\n");
    Run r =
        run(
            wrapper,
            Map.of("MOE_JAVA_HOME", jdk.toString(), "MOE_MVN", dir.resolve("mvn").toString()));
    assertThat(r.code()).as(r.text()).isEqualTo(5);
  }

  @Test
  void aBuildThatWasCutOffIsDoneAgain() throws Exception {
    Path tree = tree();
    Path lib = Files.createDirectories(tree.resolve("moe-cli/target/dist/lib"));
    Files.writeString(lib.resolve("moe-cli-0.jar"), ""); // the others were to be copied after it
    Run r = runTree(tree);
    assertThat(r.code()).as(r.text()).isEqualTo(5);
    assertThat(Files.readString(dir.resolve("builds"))).isEqualTo("built\n");
    assertThat(runTree(tree).code()).isEqualTo(5);
    assertThat(Files.readString(dir.resolve("builds"))).isEqualTo("built\n");
  }

  @Test
  void aBuildByMavenAloneCounts() throws Exception {
    Path tree = tree();
    Path dist = Files.createDirectories(tree.resolve("moe-cli/target/dist/lib")).getParent();
    Files.writeString(dist.resolve("lib/moe-cli-0.jar"), "");
    Files.writeString(dist.resolve(".complete"), "");
    assertThat(runTree(tree).code()).isEqualTo(5);
    assertThat(dir.resolve("builds")).doesNotExist();
  }

  @Test
  void whereNothingCanBeWrittenWhatIsBuiltIsRun() throws Exception {
    Path tree = tree();
    Path target = tree.resolve("moe-cli/target");
    Files.delete(target);
    Files.writeString(
        target, "stands in for a read-only file system, which even root may not write");
    Run not = runTree(tree);
    assertThat(not.code()).as(not.text()).isEqualTo(1);
    assertThat(not.text()).contains("cannot write to", "has not been built yet");
    Files.delete(target);
    Path dist = Files.createDirectories(target.resolve("dist/lib")).getParent();
    Files.writeString(dist.resolve(".built"), "");
    Files.writeString(target.resolve(".building"), "a file, so that no lock can be made");
    Path newer = tree.resolve("moe-cli/src/main/New.java");
    Files.createDirectories(newer.getParent());
    Files.writeString(newer, "");
    Files.setLastModifiedTime(
        newer, java.nio.file.attribute.FileTime.from(java.time.Instant.now().plusSeconds(60)));
    Run old = runTree(tree);
    assertThat(old.code()).as(old.text()).isEqualTo(5);
    assertThat(old.text()).contains("sources are newer than what is built", "java of jdk");
  }

  @Test
  void aColonInThePathDoesNotCutIt() throws Exception {
    Path dist = Files.createDirectories(dir.resolve("a:b"));
    Files.createDirectories(dist.resolve("lib"));
    Files.copy(SCRIPT, dist.resolve("moe"), java.nio.file.StandardCopyOption.COPY_ATTRIBUTES);
    Run r = run(dist.resolve("moe"), Map.of("MOE_JAVA_HOME", jdk("jdk", "25").toString()), "run");
    assertThat(r.text())
        .satisfiesAnyOf(
            t -> assertThat(t).contains("</proc/self/fd/9/*>"),
            t -> assertThat(t).contains("there is a ':' in the path"));
  }

  @Test
  void withoutALocaleNamesAreUtf8() throws Exception {
    Path dist = distribution();
    Path jdk = jdk("jdk", "25");
    executable(jdk.resolve("bin/java"), "#!/bin/sh\necho \"locale $LC_ALL $LC_CTYPE $LANG\"\n");
    for (String variable : new String[] {"LANG", "LC_ALL", "LC_CTYPE"}) {
      Map<String, String> environment = new java.util.HashMap<>();
      environment.put("MOE_JAVA_HOME", jdk.toString());
      environment.put("LANG", "");
      environment.put("LC_ALL", "");
      environment.put("LC_CTYPE", "");
      environment.put(variable, "C");
      Run r = run(dist.resolve("moe"), environment, "inspect", "\u00fcber");
      assertThat(r.text().toLowerCase(java.util.Locale.ROOT).replace("-", "")).contains("utf8");
      environment.put(variable, "de_DE.ISO-8859-1"); // somebody's choice
      assertThat(run(dist.resolve("moe"), environment, "inspect", "x").text())
          .contains("de_DE.ISO-8859-1")
          .doesNotContain("UTF");
    }
  }

  @Test
  void whatComputesNothingGoesWithoutTheIncubatorModule() throws Exception {
    Path dist = distribution();
    Path jdk = jdk("jdk", "25");
    for (String command : new String[] {"inspect", "help", "completion", "--version", "--help"}) {
      assertThat(run(dist.resolve("moe"), Map.of("MOE_JAVA_HOME", jdk.toString()), command).text())
          .doesNotContain("jdk.incubator.vector");
    }
    for (String command : new String[] {"run", "bench", "tune", "backends", "doctor"}) {
      assertThat(run(dist.resolve("moe"), Map.of("MOE_JAVA_HOME", jdk.toString()), command).text())
          .contains("<--add-modules=jdk.incubator.vector>");
    }
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
