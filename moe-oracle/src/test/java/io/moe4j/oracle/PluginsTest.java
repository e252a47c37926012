package io.moe4j.oracle;

import static io.moe4j.oracle.PluginWorkshop.backend;
import static io.moe4j.oracle.PluginWorkshop.jar;
import static io.moe4j.oracle.PluginWorkshop.locationOf;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import ch.qos.logback.classic.Level;
import io.moe4j.api.MoeException;
import io.moe4j.api.device.DeviceProvider;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.api.spi.Support;
import java.io.IOException;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Jars dropped into a plugins directory, whole and broken. */
class PluginsTest {
  private static final String SPI = ExpertsBackend.class.getName();

  @TempDir private Path temp;
  private Path plugins;
  private PluginWorkshop workshop;

  @BeforeEach
  void directories() throws IOException {
    plugins = Files.createDirectories(temp.resolve("plugins"));
    workshop = new PluginWorkshop(temp.resolve("workshop"));
  }

  private void drop(String jar, String type, String name) throws IOException {
    workshop.backendJar(
        plugins.resolve(jar), type, "1.5", backend(type, quote(name), quote(name), ""));
  }

  private static String quote(String s) {
    return '"' + s + '"';
  }

  private static PluginFailure onlyFailure(BackendCatalog catalog) {
    assertThat(catalog.failures()).hasSize(1);
    PluginFailure f = catalog.failures().getFirst();
    assertThat(f.reason().code()).isEqualTo(Support.Code.LOAD_FAILURE);
    return f;
  }

  @Test
  void jarIsFoundWithItsPathAndVersion() throws IOException {
    drop("acme.jar", "com.acme.Backend", "acme");
    try (BackendCatalog catalog = BackendCatalog.discover(plugins)) {
      FoundBackend b = catalog.backend("acme").orElseThrow();
      assertThat(b.origin())
          .isEqualTo(
              new PluginOrigin(
                  plugins.resolve("acme.jar").toString(),
                  Optional.of("1.5"),
                  Optional.of("acme.jar")));
      assertThat(b.backend().getClass().getClassLoader())
          .hasToString("PluginClassLoader[acme.jar]");
      assertThat(catalog.failures()).isEmpty();
      Selection s = MoeOracle.of(catalog).select(Zoo.config().build(), Zoo.CPU_ONLY);
      assertThat(s.chosenBackend().name()).isEqualTo("acme");
      assertThat(s.explain()).contains("acme.jar").contains("1.5");
    }
  }

  @Test
  void closingTheCatalogClosesThePluginsLoaders() throws IOException {
    drop("acme.jar", "com.acme.Backend", "acme");
    BackendCatalog catalog = BackendCatalog.discover(plugins);
    ClassLoader loader =
        catalog.backend("acme").orElseThrow().backend().getClass().getClassLoader();
    assertThat(loader.getResource("com/acme/Backend.class")).isNotNull();
    catalog.close();
    catalog.close();
    assertThat(loader.getResource("com/acme/Backend.class")).isNull();
  }

  @Test
  void pluginsMayCarryDifferentVersionsOfOneDependency() throws IOException {
    for (String version : List.of("1", "2")) {
      Path dependency =
          workshop.compile(
              Map.of(
                  "com.dep.Version",
                  "package com.dep; public class Version { public static String is() { return \""
                      + version
                      + "\"; } }"));
      String type = "com.acme" + version + ".Backend";
      String source =
          backend(type, quote("acme-" + version), "\"dep \" + com.dep.Version.is()", "");
      // One in a sub-directory with its dependency beside it, the other all in one jar.
      Path classes = workshop.compile(Map.of(type, source), dependency);
      if (version.equals("1")) {
        jar(plugins.resolve("one/backend.jar"), "1", Map.of(SPI, type), classes);
        jar(plugins.resolve("one/dep.jar"), "1", Map.of(), dependency);
      } else {
        jar(plugins.resolve("two.jar"), "1", Map.of(SPI, type), classes, dependency);
      }
    }
    try (BackendCatalog catalog = BackendCatalog.discover(plugins)) {
      assertThat(catalog.failures()).isEmpty();
      assertThat(catalog.backend("acme-1").orElseThrow().description()).isEqualTo("dep 1");
      assertThat(catalog.backend("acme-2").orElseThrow().description()).isEqualTo("dep 2");
      assertThat(catalog.backend("acme-1").orElseThrow().origin().plugin()).contains("one");
    }
  }

  @Test
  void pluginsOwnClassesComeBeforeTheHostsAndTheHostsAreThereForTheRest() throws IOException {
    String marker = "io.moe4j.oracle.SharedMarker";
    Path own =
        workshop.compile(
            Map.of(
                marker,
                "package io.moe4j.oracle; public class SharedMarker {"
                    + " public static final Object OWNER = \"plugin\"; }"));
    Path host = locationOf(SharedMarker.class);
    String source = backend("com.acme.Backend", quote("acme"), "(String) " + marker + ".OWNER", "");
    Path classes = workshop.compile(Map.of("com.acme.Backend", source), host);
    jar(plugins.resolve("with.jar"), "1", Map.of(SPI, "com.acme.Backend"), classes, own);
    String source2 =
        backend("com.acme.Second", quote("second"), "(String) " + marker + ".OWNER", "");
    Path classes2 = workshop.compile(Map.of("com.acme.Second", source2), host);
    jar(plugins.resolve("without.jar"), "1", Map.of(SPI, "com.acme.Second"), classes2);
    try (BackendCatalog catalog = BackendCatalog.discover(plugins)) {
      assertThat(catalog.backend("acme").orElseThrow().description()).isEqualTo("plugin");
      assertThat(catalog.backend("second").orElseThrow().description()).isEqualTo("host");
    }
    assertThat(SharedMarker.OWNER).isEqualTo("host");
  }

  @Test
  void copyOfTheApiInAPluginIsNotUsed() throws IOException {
    Path api = locationOf(ExpertsBackend.class);
    String type = "com.acme.Backend";
    Path classes = workshop.compile(Map.of(type, backend(type, quote("acme"), quote("x"), "")));
    Path copy = Files.createDirectories(temp.resolve("copy/io/moe4j/api/spi"));
    try (URLClassLoader reader = new URLClassLoader(new URL[] {api.toUri().toURL()}, null);
        var in = reader.getResourceAsStream("io/moe4j/api/spi/ExpertsBackend.class")) {
      Files.copy(java.util.Objects.requireNonNull(in), copy.resolve("ExpertsBackend.class"));
    }
    jar(plugins.resolve("fat.jar"), "1", Map.of(SPI, type), classes, temp.resolve("copy"));
    try (BackendCatalog catalog = BackendCatalog.discover(plugins)) {
      assertThat(catalog.failures()).isEmpty();
      assertThat(catalog.backend("acme")).isPresent();
    }
  }

  @Test
  void pluginForALaterApiSaysWhichClassItMisses() throws IOException {
    Path future =
        workshop.compile(
            Map.of(
                "io.moe4j.api.spi.Future",
                "package io.moe4j.api.spi; public class Future { public Future() {} }"));
    String type = "com.acme.Backend";
    Path classes =
        workshop.compile(
            Map.of(type, backend(type, quote("acme"), quote("x"), "Object f = new Future();")),
            future);
    // Even though it brings the class along.
    jar(plugins.resolve("later.jar"), "1", Map.of(SPI, type), classes, future);
    try (BackendCatalog catalog = BackendCatalog.discover(plugins)) {
      assertThat(onlyFailure(catalog).reason().message())
          .isEqualTo(
              "cannot be created: class io.moe4j.api.spi.Future is missing: built against another"
                  + " version of moe-api");
    }
  }

  /** A constant that this version does not have: of the linkage errors, the one for fields. */
  @Test
  void pluginForALaterApiSaysWhichConstantItMisses() throws IOException {
    Path future =
        workshop.compile(
            Map.of(
                "io.moe4j.api.config.ActivationFormat",
                "package io.moe4j.api.config; public enum ActivationFormat {"
                    + " STANDARD, BATCHED, RAGGED }"));
    String type = "com.acme.Backend";
    String source =
        backend(type, quote("acme"), quote("x"), "")
            .replace("return ActivationFormat.STANDARD", "return ActivationFormat.RAGGED");
    Path classes = workshop.compileFirst(future, Map.of(type, source));
    jar(plugins.resolve("later.jar"), "1", Map.of(SPI, type), classes);
    try (BackendCatalog catalog = BackendCatalog.discover(plugins)) {
      assertThat(onlyFailure(catalog).reason().message())
          .startsWith("failed when asked what it is: ")
          .contains("RAGGED")
          .endsWith(": built against another version of what it calls");
    }
  }

  @Test
  void servicesFilesOfAnotherNameAreShown() throws IOException {
    Map<String, String> wrong =
        Map.of("io.moe4j.api.ExpertsBackend", "com.acme.Backend", "Backend", "com.acme.Backend");
    jar(plugins.resolve("wrong.jar"), "1", wrong);
    try (BackendCatalog catalog = BackendCatalog.discover(plugins)) {
      assertThat(onlyFailure(catalog).reason().message())
          .contains(
              "a backend's class stands in META-INF/services/" + SPI + ", and there is only [")
          .contains("META-INF/services/io.moe4j.api.ExpertsBackend")
          .contains("META-INF/services/Backend");
    }
  }

  @Test
  void servicesFileWithoutAClassIsARow() throws IOException {
    jar(plugins.resolve("comment.jar"), "1", Map.of(SPI, "# com.acme.Backend\n"));
    try (BackendCatalog catalog = BackendCatalog.discover(plugins)) {
      PluginFailure f = onlyFailure(catalog);
      assertThat(f.name()).isEqualTo("comment.jar");
      assertThat(f.origin().location()).isEqualTo(plugins.resolve("comment.jar").toString());
      assertThat(f.reason().message()).isEqualTo("META-INF/services/" + SPI + " names no class");
    }
  }

  /** As in the source, not as the class file is called. */
  @Test
  void nestedClassWithADotIsToldHowItIsWritten() throws IOException {
    String type = "com.acme.Outer";
    Path classes =
        workshop.compile(
            Map.of(type, "package com.acme; public class Outer { public static class Inner {} }"));
    jar(plugins.resolve("nested.jar"), "1", Map.of(SPI, "com.acme.Outer.Inner"), classes);
    try (BackendCatalog catalog = BackendCatalog.discover(plugins)) {
      assertThat(onlyFailure(catalog).reason().message())
          .contains("but not there")
          .endsWith("a nested one's like com.acme.Outer$Inner");
    }
  }

  @Test
  void everyKindOfBrokenPluginIsARowWithItsReason() throws IOException {
    drop("a-good.jar", "com.acme.Good", "good");
    broken("b-ctor.jar", "Ctor", "public Ctor() { throw new IllegalStateException(\"boom\"); }");
    broken("c-static.jar", "Static", "static { if (true) throw new RuntimeException(\"init\"); }");
    broken("d-private.jar", "Private", "private Private() {}");
    broken("e-arg.jar", "Arg", "public Arg(int x) {}");
    broken("f-error.jar", "Err", "public Err() { throw new Error(\"bare\"); }");
    missingClass("g-missing.jar");
    jar(plugins.resolve("h-named.jar"), "1", Map.of(SPI, "com.acme.Nowhere"));
    jar(
        plugins.resolve("i-other.jar"),
        "1",
        Map.of(SPI, "com.acme.Other"),
        workshop.compile(Map.of("com.acme.Other", "package com.acme; public class Other {}")));
    Path future =
        workshop.compile(
            Map.of("com.acme.New", backend("com.acme.New", quote("new"), quote("x"), "")));
    PluginWorkshop.fromTheFuture(future);
    jar(plugins.resolve("j-newer.jar"), "1", Map.of(SPI, "com.acme.New"), future);
    drop("k-corrupt.jar", "com.acme.Corrupt", "corrupt");
    byte[] bytes = Files.readAllBytes(plugins.resolve("k-corrupt.jar"));
    Files.write(plugins.resolve("k-corrupt.jar"), Arrays.copyOf(bytes, bytes.length / 2));
    jar(plugins.resolve("l-nothing.jar"), "1", Map.of());
    Files.createDirectories(plugins.resolve("m-empty"));
    drop("n-name.jar", "com.acme.Name", "Not A Name");
    dropSource("o-null.jar", "com.acme.Null", backend("com.acme.Null", "null", quote("x"), ""));
    dropSource(
        "p-throws.jar",
        "com.acme.Throws",
        backend("com.acme.Throws", "String.valueOf(1 / (int) Math.rint(0.1))", quote("x"), ""));
    jar(plugins.resolve("q-garbage.jar"), "1", Map.of(SPI, "not a class name!\n# only a comment"));
    Files.writeString(plugins.resolve("README.txt"), "not a plugin");
    Files.createDirectories(plugins.resolve(".hidden"));

    try (LogCapture log = new LogCapture(BackendCatalog.class);
        BackendCatalog catalog = BackendCatalog.discover(plugins)) {
      assertThat(catalog.backends()).extracting(FoundBackend::name).containsExactly("good");
      List<String> rows =
          catalog.failures().stream()
              .map(f ->
                  Path.of(f.origin().location()).getFileName()
                      + " "
                      + f.name()
                      + ": "
                      + f.reason().message())
              .toList();
      assertThat(rows)
          .satisfiesExactly(
              r ->
                  assertThat(r)
                      .isEqualTo(
                          "b-ctor.jar com.acme.Ctor: cannot be created:"
                              + " java.lang.IllegalStateException: boom"),
              r ->
                  assertThat(r)
                      .isEqualTo(
                          "c-static.jar com.acme.Static: cannot be created:"
                              + " java.lang.RuntimeException: init"),
              r ->
                  assertThat(r)
                      .startsWith("d-private.jar com.acme.Private: cannot be created:")
                      .endsWith("no public constructor without arguments"),
              r ->
                  assertThat(r)
                      .startsWith("e-arg.jar com.acme.Arg: cannot be created:")
                      .endsWith("no public constructor without arguments"),
              r ->
                  assertThat(r)
                      .isEqualTo(
                          "f-error.jar com.acme.Err: cannot be created: java.lang.Error: bare"),
              r ->
                  assertThat(r)
                      .isEqualTo(
                          "g-missing.jar com.acme.Missing: cannot be created: class"
                              + " com.dep.Gone is missing"),
              r ->
                  assertThat(r)
                      .isEqualTo(
                          "h-named.jar com.acme.Nowhere: named in META-INF/services/"
                              + SPI
                              + " but not there; a line there is the full name of a class, a"
                              + " nested one's like com.acme.Outer$Inner"),
              r -> assertThat(r).isEqualTo("i-other.jar com.acme.Other: does not implement " + SPI),
              r ->
                  assertThat(r)
                      .startsWith(
                          "j-newer.jar com.acme.New: cannot be loaded: compiled for a newer Java"),
              r -> assertThat(r).startsWith("k-corrupt.jar k-corrupt.jar: is not a readable jar"),
              r ->
                  assertThat(r)
                      .startsWith("l-nothing.jar l-nothing.jar: names no backend")
                      .contains("META-INF/services/" + SPI + ", and there is no such file"),
              r -> assertThat(r).isEqualTo("m-empty m-empty: the directory holds no jar"),
              r ->
                  assertThat(r)
                      .isEqualTo(
                          "n-name.jar com.acme.Name: name() is \"Not A Name\", must be"
                              + " lower-case letters, digits and dashes"),
              r -> assertThat(r).isEqualTo("o-null.jar com.acme.Null: name() is null"),
              r ->
                  assertThat(r)
                      .isEqualTo(
                          "p-throws.jar com.acme.Throws: failed when asked what it is:"
                              + " java.lang.ArithmeticException: / by zero"),
              r ->
                  assertThat(r)
                      .startsWith("q-garbage.jar not a class name!: named in META-INF/services/"));
      assertThat(log.at(Level.WARN)).hasSameSizeAs(rows);
      // Every one of them is a row of every table.
      String table = MoeOracle.of(catalog).select(Zoo.config().build(), Zoo.CPU_ONLY).explain();
      assertThat(catalog.failures())
          .allSatisfy(f -> assertThat(table).contains(f.name()).contains(f.reason().message()));
    }
  }

  private void broken(String jar, String simpleName, String members) throws IOException {
    String type = "com.acme." + simpleName;
    dropSource(jar, type, backend(type, quote("broken"), quote("x"), members));
  }

  private void dropSource(String jar, String type, String source) throws IOException {
    workshop.backendJar(plugins.resolve(jar), type, "1", source);
  }

  private void missingClass(String name) throws IOException {
    Path gone =
        workshop.compile(
            Map.of("com.dep.Gone", "package com.dep; public class Gone { public Gone() {} }"));
    String type = "com.acme.Missing";
    Path classes =
        workshop.compile(
            Map.of(type, backend(type, quote("m"), quote("x"), "Object o = new com.dep.Gone();")),
            gone);
    jar(plugins.resolve(name), "1", Map.of(SPI, type), classes);
  }

  @Test
  void twoPluginsOfOneNameAreARowEachAndNeitherIsUsed() throws IOException {
    drop("first.jar", "com.acme.First", "twin");
    drop("second.jar", "com.acme.Second", "twin");
    drop("third.jar", "com.acme.Third", "other");
    try (BackendCatalog catalog = BackendCatalog.discover(plugins)) {
      assertThat(catalog.backend("twin")).isEmpty();
      assertThat(catalog.backend("other")).isPresent();
      assertThat(catalog.failures())
          .hasSize(2)
          .allSatisfy(f ->
              assertThat(f.reason().message())
                  .contains("ambiguous: two backends are named \"twin\"")
                  .contains(plugins.resolve("first.jar").toString())
                  .contains(plugins.resolve("second.jar").toString())
                  .endsWith(
                      "; let name() of one say something else, or remove one of the two jars"));
      MoeOracle oracle = MoeOracle.of(catalog);
      assertThat(oracle.select(Zoo.config().build(), Zoo.CPU_ONLY, "other").chosenBackend().name())
          .isEqualTo("other");
      assertThatThrownBy(() -> oracle.select(Zoo.config().build(), Zoo.CPU_ONLY, "twin"))
          .isInstanceOf(UnsupportedConfigException.class)
          .hasMessageContaining("\"twin\" was asked for and cannot be used: ambiguous");
    }
  }

  @Test
  void everyErrorThatAPluginThrowsIsARow() throws IOException {
    broken("oom.jar", "Oom", "public Oom() { throw new OutOfMemoryError(\"of this test\"); }");
    broken(
        "soe.jar",
        "Soe",
        "public Soe() { deeper(0); } int deeper(int i) { return deeper(i + 1) + 1; }");
    broken(
        "soestatic.jar",
        "SoeStatic",
        "static int x = deeper(0); static int deeper(int i) { return deeper(i + 1) + 1; }");
    broken("internal.jar", "Internal", "public Internal() { throw new InternalError(\"mine\"); }");
    broken("unknown.jar", "Unknown", "public Unknown() { throw new UnknownError(\"mine\"); }");
    broken(
        "mute.jar",
        "Mute",
        "public Mute() { throw new RuntimeException() {"
            + " @Override public String getMessage() { throw new IllegalStateException(); } }; }");
    broken(
        "mutecause.jar",
        "MuteCause",
        "public MuteCause() { throw new RuntimeException(\"mine\", new Error() {"
            + " @Override public String toString() { throw new Error(); } }); }");
    broken(
        "interrupting.jar",
        "Interrupting",
        "public Interrupting() { Thread.currentThread().interrupt(); throw new Error(\"mine\"); }");
    broken("bare.jar", "Bare", "public Bare() { throw new Error(); }");
    broken(
        "assertion.jar", "Assertion", "public Assertion() { throw new AssertionError(\"mine\"); }");
    broken(
        "sneaky.jar",
        "Sneaky",
        "public Sneaky() throws Throwable { throw new Throwable(\"mine\"); }");
    try (BackendCatalog catalog = BackendCatalog.discover(plugins)) {
      assertThat(catalog.failures())
          .extracting(f -> f.origin().shortLocation())
          .containsExactlyInAnyOrder(
              "oom.jar",
              "soe.jar",
              "soestatic.jar",
              "internal.jar",
              "unknown.jar",
              "mute.jar",
              "mutecause.jar",
              "interrupting.jar",
              "bare.jar",
              "assertion.jar",
              "sneaky.jar");
      assertThat(catalog.failures())
          .allSatisfy(f -> assertThat(f.reason().message()).startsWith("cannot be created: "));
      assertThat(Thread.currentThread().isInterrupted()).isFalse();
    }
  }

  /** Bytes turned anywhere in a jar: whatever comes of it is a row, or a backend. */
  @Test
  void damagedJarsAreRows() throws IOException {
    drop("whole.jar", "com.acme.Backend", "acme");
    byte[] whole = Files.readAllBytes(plugins.resolve("whole.jar"));
    Files.delete(plugins.resolve("whole.jar"));
    java.util.SplittableRandom rng = new java.util.SplittableRandom(20261129);
    long end = System.nanoTime() + 1_000_000_000L * Long.getLong("moe.fuzz.seconds", 10);
    for (int round = 0; round < 20 || System.nanoTime() < end; round++) {
      for (int i = 0; i < 20; i++) {
        byte[] bytes = whole.clone();
        for (int n = 1 + rng.nextInt(8); n > 0; n--) {
          bytes[rng.nextInt(bytes.length)] = (byte) rng.nextInt();
        }
        int length = rng.nextInt(4) == 0 ? rng.nextInt(bytes.length) : bytes.length;
        Files.write(plugins.resolve(i + ".jar"), Arrays.copyOf(bytes, length));
      }
      try (BackendCatalog catalog = BackendCatalog.discover(plugins);
          MoeOracle oracle = MoeOracle.of(catalog)) {
        String text = oracle.evaluate(Zoo.config().build(), Zoo.CPU_ONLY).explain();
        assertThat(text.chars().filter(c -> c != '\n' && c < ' ')).isEmpty();
      }
    }
  }

  @Test
  void servicesFilesHaveALimit() throws IOException {
    jar(plugins.resolve("long.jar"), "1", Map.of(SPI, "#".repeat((1 << 20) + 1)));
    jar(
        plugins.resolve("many.jar"),
        "1",
        Map.of(
            SPI,
            java.util.stream.IntStream.range(0, 2000)
                .mapToObj(i -> "x.C" + i)
                .collect(java.util.stream.Collectors.joining("\n"))));
    try (BackendCatalog catalog = BackendCatalog.discover(plugins)) {
      assertThat(catalog.failures())
          .hasSize(2)
          .extracting(f -> f.reason().message())
          .anySatisfy(m -> assertThat(m).contains("longer than 1048576 bytes"))
          .anySatisfy(m -> assertThat(m).contains("more than 1000 classes"));
    }
  }

  @Test
  void aPluginThatTakesLongIsNamedWhileItDoes() throws IOException {
    broken(
        "slow.jar",
        "Slow",
        "public Slow() throws Exception { Thread.sleep(2500); throw new Exception(\"at last\"); }");
    try (LogCapture log = new LogCapture(SlowPlugins.class);
        BackendCatalog catalog = BackendCatalog.discover(plugins)) {
      assertThat(onlyFailure(catalog).reason().message()).contains("at last");
      assertThat(log.at(Level.WARN))
          .anySatisfy(m -> assertThat(m).contains("Still waiting", "slow.jar"));
    }
  }

  @Test
  void whatAPluginSaysStaysOnItsLine() throws IOException {
    broken(
        "rude.jar",
        "Rude",
        "public Rude() { throw new IllegalStateException(\"\\u001b[2J\\nmoe: all is well\"); }");
    try (BackendCatalog catalog = BackendCatalog.discover(plugins)) {
      String text = MoeOracle.of(catalog).evaluate(Zoo.config().build(), Zoo.CPU_ONLY).explain();
      assertThat(text).contains("\\u001b[2J\\nmoe: all is well").doesNotContain("\u001b");
    }
  }

  @Test
  void pluginsDirectoryThatIsNotThere() {
    assertThatThrownBy(() -> MoeOracle.discover(plugins.resolve("nope")))
        .isInstanceOf(MoeException.class)
        .hasMessageContaining("nope is not a directory");
  }

  @Test
  void deviceProviderOfAPluginServesItsOwnBackendsFirst() throws IOException {
    drop("plain.jar", "com.acme.Plain", "plain");
    String provider =
        """
        package com.acme;
        import io.moe4j.api.platform.*;
        import io.moe4j.api.device.*;
        import io.moe4j.api.spi.*;
        import java.util.List;
        public class Provider implements DeviceProvider {
          public DeviceType type() { return DeviceType.CPU; }
          public Probe probe() {
            return new Probe(List.of(DeviceInfo.of(DeviceId.CPU, "of the plugin")), "");
          }
          public Device open(int ordinal) { throw new IllegalStateException("plugin's " + ordinal); }
        }
        """;
    String type = "com.acme.WithDevice";
    Path classes =
        workshop.compile(
            Map.of(
                "com.acme.Provider",
                provider,
                type,
                backend(type, quote("with-device"), quote("x"), "")));
    jar(
        plugins.resolve("device.jar"),
        "1",
        Map.of(SPI, type, DeviceProvider.class.getName(), "com.acme.Provider"),
        classes);
    try (BackendCatalog catalog = BackendCatalog.discover(plugins)) {
      assertThat(catalog.detectPlatform().devices().getFirst().name()).isEqualTo("of the plugin");
      var cpu = io.moe4j.api.platform.DeviceId.CPU;
      for (String name : List.of("with-device", "plain")) {
        assertThatThrownBy(() -> catalog.openDevice(catalog.backend(name).orElseThrow(), cpu))
            .hasMessageContaining("device.jar")
            .hasMessageContaining("plugin's 0");
      }
    }
  }

  @Test
  void jarThatIsBothOnTheClassPathAndAPluginIsTakenOnceAndSaysSo() throws IOException {
    drop("acme.jar", "com.acme.Backend", "acme");
    Thread thread = Thread.currentThread();
    ClassLoader before = thread.getContextClassLoader();
    try (URLClassLoader context =
        new URLClassLoader(
            new URL[] {plugins.resolve("acme.jar").toUri().toURL()},
            PluginsTest.class.getClassLoader())) {
      thread.setContextClassLoader(context);
      try (BackendCatalog catalog = BackendCatalog.discover(plugins)) {
        assertThat(catalog.backend("acme").orElseThrow().origin().plugin()).isEmpty();
        assertThat(onlyFailure(catalog).reason().message())
            .isEqualTo(
                "is on the class path as well, and was taken from there; leave it in one place");
      }
    } finally {
      thread.setContextClassLoader(before);
    }
  }

  @Test
  void backendOnTheContextClassPathIsFoundAndABrokenOneNamesItsJar() throws IOException {
    Path good = temp.resolve("lib/good.jar");
    workshop.backendJar(
        good, "com.acme.Good", "2.0", backend("com.acme.Good", quote("good"), quote("x"), ""));
    Path bad = temp.resolve("lib/bad.jar");
    jar(bad, "1", Map.of(SPI, "com.acme.Nowhere"));
    Thread thread = Thread.currentThread();
    ClassLoader before = thread.getContextClassLoader();
    try (URLClassLoader context =
        new URLClassLoader(
            new URL[] {good.toUri().toURL(), bad.toUri().toURL()},
            PluginsTest.class.getClassLoader())) {
      thread.setContextClassLoader(context);
      try (BackendCatalog catalog = BackendCatalog.discover()) {
        assertThat(catalog.backend("good").orElseThrow().origin())
            .isEqualTo(new PluginOrigin(good.toString(), Optional.of("2.0"), Optional.empty()));
        PluginFailure f = onlyFailure(catalog);
        assertThat(f.name()).isEqualTo("com.acme.Nowhere");
        assertThat(f.origin().location()).isEqualTo(bad.toString());
      }
    } finally {
      thread.setContextClassLoader(before);
    }
  }
}
