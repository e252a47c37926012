package io.moe4j.integration.architecture;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import com.tngtech.archunit.ArchConfiguration;
import com.tngtech.archunit.core.domain.JavaClass;
import com.tngtech.archunit.core.domain.JavaClasses;
import com.tngtech.archunit.core.importer.ClassFileImporter;
import com.tngtech.archunit.lang.ArchRule;
import java.io.IOException;
import java.io.StringWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import javax.tools.JavaCompiler;
import javax.tools.StandardJavaFileManager;
import javax.tools.ToolProvider;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

/** The rooms of the house, over the main classes of every module; and proof that the rules bite. */
class ArchitectureTest {
  private static final Pattern MODULE = Pattern.compile("<module>([^<]+)</module>");
  private static final Path PROJECT = project();

  private static final Map<Path, JavaClasses> IMPORTED = new HashMap<>();

  @TempDir private Path temp;

  static {
    // The rules look at names of packages only: no need to read the libraries' classes.
    ArchConfiguration.get().setResolveMissingDependenciesFromClassPath(false);
  }

  private static Path project() {
    Path p = Path.of("").toAbsolutePath();
    return Files.isDirectory(p.resolve("moe-api")) ? p : p.getParent();
  }

  /** Every module of the root pom that has main classes; a new one cannot stay outside. */
  static List<String> modules() throws IOException {
    List<String> all = new ArrayList<>();
    Matcher m = MODULE.matcher(Files.readString(PROJECT.resolve("pom.xml")));
    while (m.find()) {
      if (Files.isDirectory(PROJECT.resolve(m.group(1)).resolve("src/main/java"))) {
        all.add(m.group(1));
      }
    }
    return all;
  }

  private static Path classesOf(String module) {
    return PROJECT.resolve(module).resolve("target/classes");
  }

  private static JavaClasses imported(String module) {
    return IMPORTED.computeIfAbsent(
        classesOf(module), path -> new ClassFileImporter().importPath(path));
  }

  private static JavaClasses everything() throws IOException {
    List<Path> built = new ArrayList<>();
    for (String module : modules()) {
      if (Files.isDirectory(classesOf(module))) {
        built.add(classesOf(module));
      }
    }
    assertThat(built).contains(classesOf("moe-api"), classesOf("moe-oracle"));
    return IMPORTED.computeIfAbsent(PROJECT, path -> new ClassFileImporter().importPaths(built));
  }

  @ParameterizedTest
  @MethodSource("modules")
  void moduleImportsOnlyWhatItsRoomAllows(String module) {
    assumeTrue(Files.isDirectory(classesOf(module)), module + " is not part of this build");
    JavaClasses classes = imported(module);
    assertThat(classes).isNotEmpty();
    for (ArchRule rule : Rooms.rulesOf(module)) {
      rule.check(classes);
    }
  }

  @ParameterizedTest
  @MethodSource("modules")
  void moduleHasOnePackageRoot(String module) {
    assumeTrue(Files.isDirectory(classesOf(module)), module + " is not part of this build");
    String root = Rooms.ROOMS.get(module).root();
    assertThat(imported(module))
        .allSatisfy(c -> assertThat(inRoot(c, root)).as("%s under %s", c, root).isTrue());
  }

  private static boolean inRoot(JavaClass c, String root) {
    String name = c.getPackageName();
    // Module descriptors apart, every class belongs to its module's root.
    return name.equals(root)
        || name.startsWith(root + ".")
        || c.getSimpleName().equals("module-info");
  }

  static List<ArchRule> houseRules() {
    return Rooms.houseRules();
  }

  @ParameterizedTest
  @MethodSource("houseRules")
  void houseRuleHolds(ArchRule rule) throws IOException {
    rule.check(everything());
  }

  static Stream<Arguments> violations() {
    return Stream.of(
        violation("moe-api", "io.moe4j.api.spi.Bad", "io.moe4j.oracle.MoeOracle"),
        violation("moe-api", "io.moe4j.api.Bad", "com.fasterxml.jackson.databind.ObjectMapper"),
        violation("moe-oracle", "io.moe4j.oracle.Bad", "io.moe4j.backend.cpu.Any"),
        violation("moe-oracle", "io.moe4j.oracle.Bad", "io.moe4j.cuda.Any"),
        violation("backend-cpu", "io.moe4j.backend.cpu.Bad", "io.moe4j.oracle.MoeOracle"),
        violation("moe-tck", "io.moe4j.tck.Bad", "io.moe4j.backend.cpu.Any"),
        violation("moe-checkpoint", "io.moe4j.checkpoint.Bad", "io.moe4j.lora.Any"),
        violation("lora-punica", "io.moe4j.lora.Bad", "io.moe4j.oracle.MoeOracle"),
        violation("no backend", "io.moe4j.backend.triton.Bad", "io.moe4j.backend.cpu.Any"),
        violation("only moe-cuda", "io.moe4j.backend.triton.Bad", "jcuda.driver.JCudaDriver"),
        violation("only moe-cuda", "io.moe4j.benchmarks.Bad", "io.moe4j.cuda.ffi.Any"),
        violation("only moe-cli", "io.moe4j.lora.Bad", "ch.qos.logback.classic.Logger"));
  }

  private static Arguments violation(String rule, String culprit, String imports) {
    return Arguments.of(rule, culprit, imports);
  }

  /** A class that imports what it must not, compiled against an empty class of that name. */
  @ParameterizedTest(name = "{1} importing {2} is caught by the rule of {0}")
  @MethodSource("violations")
  void ruleBites(String rule, String culprit, String imports) throws IOException {
    JavaClasses classes =
        compile(
            culprit,
            "class %s { %s field; }".formatted(simple(culprit), imports),
            imports,
            "public class %s {}".formatted(simple(imports)));
    List<ArchRule> rules =
        Rooms.ROOMS.containsKey(rule)
            ? Rooms.rulesOf(rule)
            : Rooms.houseRules().stream().filter(r -> description(r).startsWith(rule)).toList();
    assertThat(rules).hasSize(1);
    assertThatThrownBy(() -> rules.getFirst().check(classes))
        .isInstanceOf(AssertionError.class)
        .hasMessageContaining(culprit)
        .hasMessageContaining(imports);
  }

  @Test
  void ruleAgainstHiddenSettingsBites() throws IOException {
    ArchRule rule =
        Rooms.houseRules().stream()
            .filter(r -> description(r).startsWith("selection reads neither"))
            .findFirst()
            .orElseThrow();
    for (String call : List.of("System.getenv(\"X\")", "System.getProperty(\"x\")")) {
      JavaClasses classes =
          compile("io.moe4j.oracle.Bad", "class Bad { String s = %s; }".formatted(call));
      assertThatThrownBy(() -> rule.check(classes))
          .isInstanceOf(AssertionError.class)
          .hasMessageContaining("io.moe4j.oracle.Bad");
    }
  }

  @Test
  void optionalParameterIsCaught() throws IOException {
    ArchRule rule = Optionals.onlyReturned();
    for (String parameter : List.of("Optional<String>", "OptionalInt")) {
      JavaClasses classes =
          compile(
              "io.moe4j.api.Bad",
              "import java.util.*; public class Bad { public void x(%s p) {} }"
                  .formatted(parameter));
      assertThatThrownBy(() -> rule.check(classes))
          .isInstanceOf(AssertionError.class)
          .hasMessageContaining("io.moe4j.api.Bad.x(java.util.Optional");
    }
    rule.check(
        compile(
            "io.moe4j.api.Good",
            "import java.util.*; public record Good(Optional<String> component) {}"));
  }

  @Test
  void cycleOfPackagesIsCaught() throws IOException {
    JavaClasses classes =
        compileAll(
            "io.moe4j.one.First",
            "public class First { io.moe4j.two.Second field; }",
            "io.moe4j.two.Second",
            "public class Second { io.moe4j.three.sub.Third field; }",
            "io.moe4j.three.sub.Third",
            "public class Third { io.moe4j.one.First field; }");
    assertThatThrownBy(() -> Cycles.packages().check(classes))
        .isInstanceOf(AssertionError.class)
        .hasMessageContaining("one")
        .hasMessageContaining("two")
        .hasMessageContaining("three.sub");
  }

  @Test
  void cycleOfClassesIsCaught() throws IOException {
    JavaClasses classes =
        compileAll(
            "io.moe4j.one.First",
            "public class First { static class Inner { Second field; } }",
            "io.moe4j.one.Second",
            "public class Second { First field; }");
    assertThatThrownBy(() -> Cycles.classesOf("io.moe4j.one").check(classes))
        .isInstanceOf(AssertionError.class)
        .hasMessageContaining("io.moe4j.one.First$Inner")
        .hasMessageContaining("io.moe4j.one.Second");
  }

  @Test
  void publicTypesOfTheApiSaySinceWhen() throws IOException {
    try (Stream<Path> files = Files.walk(PROJECT.resolve("moe-api/src/main/java"))) {
      List<Path> sources = files.filter(f -> f.toString().endsWith(".java")).toList();
      assertThat(sources).hasSizeGreaterThan(40);
      assertThat(Since.missing(sources)).isEmpty();
    }
  }

  @Test
  void typeWithoutSinceIsFound() throws IOException {
    Path with = temp.resolve("With.java");
    Path without = temp.resolve("Without.java");
    Path soon = temp.resolve("Soon.java");
    Path hidden = temp.resolve("Hidden.java");
    Files.writeString(with, "package p; /** A. @since x\n * @since 0.2.0 */ public class With {}");
    Files.writeString(without, "package p; /** A. */ public record Without() {}");
    Files.writeString(soon, "package p; /** A.\n * @since soon */ public interface Soon {}");
    Files.writeString(hidden, "package p; class Hidden { public static class Nested {} }");
    assertThat(Since.missing(List.of(with, without, soon, hidden)))
        .satisfiesExactly(
            m -> assertThat(m).startsWith("p.Without has no @since"),
            m -> assertThat(m).startsWith("p.Soon has no @since"));
  }

  /** What users may depend on has its version there; benchmarks are not published. */
  @ParameterizedTest
  @MethodSource("modules")
  void moduleIsInTheBom(String module) throws IOException {
    assumeTrue(!module.equals("benchmarks"), "not published");
    assertThat(Files.readString(PROJECT.resolve("moe-bom").resolve("pom.xml")))
        .contains("<artifactId>" + module + "</artifactId>");
  }

  @Test
  void moduleWithoutARoomIsAnError() {
    assertThatThrownBy(() -> Rooms.rulesOf("moe-new"))
        .hasMessageContaining("module moe-new is in the root pom but not in the table");
  }

  private static String description(ArchRule rule) {
    return rule.getDescription();
  }

  private static String simple(String name) {
    return name.substring(name.lastIndexOf('.') + 1);
  }

  /** Compiles pairs of class name and body; gives the first. */
  private JavaClasses compile(String... namesAndBodies) throws IOException {
    return new ClassFileImporter()
        .importPath(
            compiled(namesAndBodies).resolve(namesAndBodies[0].replace('.', '/') + ".class"));
  }

  /** Compiles pairs of class name and body; gives all of them. */
  private JavaClasses compileAll(String... namesAndBodies) throws IOException {
    return new ClassFileImporter().importPath(compiled(namesAndBodies));
  }

  private Path compiled(String... namesAndBodies) throws IOException {
    Path sources = Files.createTempDirectory(temp, "src");
    Path classes = Files.createTempDirectory(temp, "classes");
    List<Path> files = new ArrayList<>();
    for (int i = 0; i < namesAndBodies.length; i += 2) {
      String name = namesAndBodies[i];
      Path file = sources.resolve(name.replace('.', '/') + ".java");
      Files.createDirectories(file.getParent());
      String pack = name.substring(0, name.lastIndexOf('.'));
      Files.writeString(file, "package " + pack + ";\n" + namesAndBodies[i + 1] + "\n");
      files.add(file);
    }
    JavaCompiler javac = ToolProvider.getSystemJavaCompiler();
    StringWriter messages = new StringWriter();
    try (StandardJavaFileManager manager = javac.getStandardFileManager(null, null, null)) {
      List<String> options = List.of("-d", classes.toString(), "-cp", classes.toString());
      boolean ok =
          javac
              .getTask(
                  messages,
                  manager,
                  null,
                  options,
                  null,
                  manager.getJavaFileObjectsFromPaths(files))
              .call();
      assertThat(ok).as("%s", messages).isTrue();
    }
    return classes;
  }
}
