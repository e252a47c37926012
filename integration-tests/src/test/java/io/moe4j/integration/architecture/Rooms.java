package io.moe4j.integration.architecture;

import static com.tngtech.archunit.lang.syntax.ArchRuleDefinition.classes;
import static com.tngtech.archunit.lang.syntax.ArchRuleDefinition.noClasses;

import com.tngtech.archunit.core.domain.JavaClass;
import com.tngtech.archunit.lang.ArchRule;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;

/**
 * Who may import whom. One row a module: its package root, the packages of other modules, and the
 * libraries. Whatever is not in the row is forbidden.
 */
final class Rooms {
  private static final String API = "io.moe4j.api..";
  private static final String CUDA = "io.moe4j.cuda";
  private static final String CUDA_BINDINGS = "io.moe4j.cuda.ffi..";
  private static final List<String> EVERYWHERE = List.of("java..", "org.jspecify.annotations..");

  /**
   * One module.
   *
   * @param root its package root
   * @param mayImport packages beyond its own and {@link #EVERYWHERE}
   */
  record Room(String root, List<String> mayImport) {}

  static final Map<String, Room> ROOMS = new LinkedHashMap<>();

  static {
    room("moe-api", "io.moe4j.api", "org.slf4j..");
    room("moe-oracle", "io.moe4j.oracle", API, "org.slf4j..", "jdk.jfr..");
    room(
        "backend-cpu",
        "io.moe4j.backend.cpu",
        API,
        "io.moe4j.reference..",
        "org.slf4j..",
        "jdk.incubator.vector..",
        "com.sun.management..");
    room("moe-reference", "io.moe4j.reference", API);
    room(
        "backend-triton",
        "io.moe4j.backend.triton",
        API,
        CUDA + "..",
        "org.slf4j..",
        "com.fasterxml.jackson..");
    room(
        "backend-flashinfer",
        "io.moe4j.backend.flashinfer",
        API,
        CUDA + "..",
        "org.slf4j..",
        "com.fasterxml.jackson..");
    room(
        "backend-marlin",
        "io.moe4j.backend.marlin",
        API,
        CUDA + "..",
        "org.slf4j..",
        "com.fasterxml.jackson..");
    room("moe-cuda", CUDA, API, "org.slf4j..", "jcuda..", "com.fasterxml.jackson..");
    room(
        "lora-punica",
        "io.moe4j.lora",
        API,
        "io.moe4j.checkpoint..",
        "org.slf4j..",
        "jdk.jfr..",
        "jdk.incubator.vector..");
    room("comm-tcp", "io.moe4j.comm.tcp", API);
    room("comm-nccl", "io.moe4j.comm.nccl", API, CUDA + "..");
    room("lora-punica-cuda", "io.moe4j.lora.cuda", API, CUDA + "..", "org.slf4j..");
    room(
        "moe-checkpoint",
        "io.moe4j.checkpoint",
        API,
        "org.slf4j..",
        "com.fasterxml.jackson..",
        "com.google.re2j..");
    // The kit compares with the reference, and with nothing else of any backend.
    room(
        "moe-tck",
        "io.moe4j.tck",
        API,
        "io.moe4j.reference..",
        "org.junit.jupiter..",
        "org.slf4j..",
        "com.sun.management..");
    room(
        "moe-cli",
        "io.moe4j.cli",
        API,
        "io.moe4j.oracle..",
        "io.moe4j.checkpoint..",
        "io.moe4j.lora..",
        "org.slf4j..",
        "ch.qos.logback..",
        "picocli..",
        "com.fasterxml.jackson..",
        "me.tongfei.progressbar..",
        "jdk.incubator.vector..",
        "com.sun.management..");
    room(
        "moe-micrometer",
        "io.moe4j.micrometer",
        API,
        "io.moe4j.oracle..",
        "io.moe4j.lora..",
        "io.micrometer..");
    // A bench may look at anything of ours, but reaches devices through moe-cuda like all others.
    room(
        "benchmarks",
        "io.moe4j.benchmarks",
        "io.moe4j..",
        "org.openjdk.jmh..",
        "org.slf4j..",
        "com.fasterxml.jackson..",
        "jdk.incubator.vector..",
        "com.sun.management..");
  }

  private Rooms() {}

  private static void room(String module, String root, String... mayImport) {
    ROOMS.put(module, new Room(root, List.of(mayImport)));
  }

  /** {@return the rules of one module, by what they say} */
  static List<ArchRule> rulesOf(String module) {
    Room room = ROOMS.get(module);
    if (room == null) {
      throw new AssertionError(
          "module "
              + module
              + " is in the root pom but not in the table of rooms; known are "
              + ROOMS.keySet());
    }
    String[] allowed =
        Stream.of(EVERYWHERE, List.of(room.root() + ".."), room.mayImport())
            .flatMap(List::stream)
            .toArray(String[]::new);
    return List.of(
        classes()
            .that(areOf(room))
            .should()
            .onlyDependOnClassesThat()
            .resideInAnyPackage(allowed)
            .as(module + " imports only " + List.of(allowed))
            .allowEmptyShould(true));
  }

  private static com.tngtech.archunit.base.DescribedPredicate<JavaClass> areOf(Room room) {
    return JavaClass.Predicates.resideInAPackage(room.root() + "..");
  }

  /** {@return the rules that hold across modules} */
  static List<ArchRule> houseRules() {
    List<ArchRule> rules = new ArrayList<>();
    rules.add(
        noClasses()
            .that()
            .resideOutsideOfPackage(CUDA + "..")
            .should()
            .dependOnClassesThat()
            .resideInAnyPackage("jcuda..", CUDA_BINDINGS)
            .as("only moe-cuda imports jcuda and the generated bindings"));
    rules.add(
        noClasses()
            .that()
            .resideOutsideOfPackage("io.moe4j.cli..")
            .should()
            .dependOnClassesThat()
            .resideInAPackage("ch.qos.logback..")
            .as("only moe-cli imports logback"));
    rules.add(
        com.tngtech.archunit.library.dependencies.SlicesRuleDefinition.slices()
            .matching("io.moe4j.backend.(*)..")
            .should()
            .notDependOnEachOther()
            .as("no backend imports another"));
    rules.add(Optionals.onlyReturned());
    rules.add(Cycles.packages());
    rules.add(Cycles.classesOf("io.moe4j.backend.cpu"));
    rules.add(
        noClasses()
            .that()
            .resideInAPackage("io.moe4j.oracle..")
            .should()
            .callMethod(System.class, "getenv", String.class)
            .orShould()
            .callMethod(System.class, "getenv")
            .orShould()
            .callMethod(System.class, "getProperty", String.class)
            .orShould()
            .callMethod(System.class, "getProperty", String.class, String.class)
            .orShould()
            .callMethod(Boolean.class, "getBoolean", String.class)
            .orShould()
            .callMethod(Integer.class, "getInteger", String.class)
            .as("selection reads neither the environment nor system properties"));
    return rules;
  }
}
