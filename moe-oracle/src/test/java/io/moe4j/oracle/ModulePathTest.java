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
              provides io.moe4j.api.spi.ExpertsBackend with com.acme.mod.Backend;
            }
            """);
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
    ModuleFinder finder =
        ModuleFinder.of(
            api,
            backend,
            PluginWorkshop.locationOf(MoeOracle.class),
            PluginWorkshop.locationOf(Logger.class),
            jspecify);
    ModuleLayer boot = ModuleLayer.boot();
    Configuration resolved =
        boot.configuration().resolveAndBind(finder, ModuleFinder.of(), Set.of("io.moe4j.oracle"));
    ModuleLayer layer =
        boot.defineModulesWithOneLoader(resolved, ClassLoader.getPlatformClassLoader());
    Class<?> catalogType =
        layer.findLoader("io.moe4j.oracle").loadClass(BackendCatalog.class.getName());
    assertThat(catalogType.getModule().isNamed()).isTrue();
    Thread thread = Thread.currentThread();
    ClassLoader before = thread.getContextClassLoader();
    thread.setContextClassLoader(null);
    try (AutoCloseable catalog = (AutoCloseable) catalogType.getMethod("discover").invoke(null)) {
      List<?> backends = (List<?>) catalogType.getMethod("backends").invoke(catalog);
      assertThat(backends).hasSize(1);
      Object found = backends.getFirst();
      assertThat(found.toString())
          .contains("name=modular")
          .contains("origin=" + backend + " (3.2)");
      assertThat((List<?>) catalogType.getMethod("failures").invoke(catalog)).isEmpty();
    } finally {
      thread.setContextClassLoader(before);
    }
  }
}
