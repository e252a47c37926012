package io.moe4j.oracle;

import static java.nio.charset.StandardCharsets.UTF_8;
import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.spi.ExpertsBackend;
import java.io.ByteArrayOutputStream;
import java.io.File;
import java.lang.module.Configuration;
import java.lang.module.ModuleFinder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Set;
import javax.tools.ToolProvider;
import org.jspecify.annotations.NullMarked;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.slf4j.Logger;

/** The same library as modules: a backend that only {@code provides} itself is found. */
class ModulePathTest {
  @TempDir private Path temp;

  @Test
  void backendInANamedModuleIsFoundWithTheModulesVersion() throws Exception {
    Path module = module("provides io.moe4j.api.spi.ExpertsBackend with com.acme.mod.Backend;");
    servicesFile(module); // as jars for both paths have it
    discover(
        module,
        (backends, failures) -> {
          assertThat(backends).hasSize(1);
          assertThat(backends.getFirst().toString())
              .contains("name=modular")
              .contains("origin=" + module + " (3.2)");
          assertThat(failures).isEmpty();
        });
  }

  @Test
  void backendThatAModuleOnlyNamesInAServicesFileIsARow() throws Exception {
    Path module = module("");
    servicesFile(module);
    discover(
        module,
        (backends, failures) -> {
          assertThat(backends).isEmpty();
          assertThat(failures).hasSize(1);
          assertThat(failures.getFirst().toString())
              .contains("name=com.acme.mod.Backend")
              .contains(module.toString())
              .contains("is not looked at in module com.acme.mod; add to its module-info:")
              .contains("provides io.moe4j.api.spi.ExpertsBackend with com.acme.mod.Backend");
        });
  }

  private static void servicesFile(Path module) throws Exception {
    Path services = Files.createDirectories(module.resolve("META-INF/services"));
    Files.writeString(services.resolve(ExpertsBackend.class.getName()), "com.acme.mod.Backend\n");
  }

  /** Compiles a module with one backend. */
  private Path module(String provides) throws Exception {
    String type = "com.acme.mod.Backend";
    Path api = PluginWorkshop.locationOf(ExpertsBackend.class);
    Path jspecify = PluginWorkshop.locationOf(NullMarked.class);
    Path source = Files.createDirectories(temp.resolve("src/com/acme/mod"));
    Path descriptor =
        Files.writeString(
            temp.resolve("src/module-info.java"),
            """
            module com.acme.mod {
              requires io.moe4j.api;
              %s
            }
            """
                .formatted(provides));
    Path file =
        Files.writeString(
            source.resolve("Backend.java"),
            PluginWorkshop.backend(type, "\"modular\"", "\"x\"", ""));
    Path backend = temp.resolve("module");
    ByteArrayOutputStream messages = new ByteArrayOutputStream();
    int rc =
        ToolProvider.getSystemJavaCompiler()
            .run(
                null,
                messages,
                messages,
                "-d",
                backend.toString(),
                "-p",
                api + File.pathSeparator + jspecify,
                "--module-version",
                "3.2",
                descriptor.toString(),
                file.toString());
    assertThat(rc).as(messages.toString(UTF_8)).isZero();
    return backend;
  }

  /** Told of the backends and the failures of a catalog that is itself in a module. */
  private interface Check {
    void look(List<?> backends, List<?> failures);
  }

  private static void discover(Path module, Check check) throws Exception {
    Path api = PluginWorkshop.locationOf(ExpertsBackend.class);
    Path jspecify = PluginWorkshop.locationOf(NullMarked.class);
    ModuleFinder finder =
        ModuleFinder.of(
            api,
            module,
            PluginWorkshop.locationOf(MoeOracle.class),
            PluginWorkshop.locationOf(Logger.class),
            jspecify);
    ModuleLayer boot = ModuleLayer.boot();
    Configuration resolved =
        boot.configuration()
            .resolveAndBind(finder, ModuleFinder.of(), Set.of("io.moe4j.oracle", "com.acme.mod"));
    ModuleLayer layer =
        boot.defineModulesWithOneLoader(resolved, ClassLoader.getPlatformClassLoader());
    Class<?> catalogType =
        layer.findLoader("io.moe4j.oracle").loadClass(BackendCatalog.class.getName());
    assertThat(catalogType.getModule().isNamed()).isTrue();
    Thread thread = Thread.currentThread();
    ClassLoader before = thread.getContextClassLoader();
    thread.setContextClassLoader(null);
    try (AutoCloseable catalog = (AutoCloseable) catalogType.getMethod("discover").invoke(null)) {
      check.look(
          (List<?>) catalogType.getMethod("backends").invoke(catalog),
          (List<?>) catalogType.getMethod("failures").invoke(catalog));
    } finally {
      thread.setContextClassLoader(before);
    }
  }
}
