package io.moe4j.backend.cpu.ffi;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.HexFormat;
import java.util.List;
import java.util.Objects;
import java.util.Properties;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;

/** The libraries in the jar are what {@code tools/kernels/build.py} made from these sources. */
class CompiledKernelsTest {
  private static final String ROOT = "/META-INF/moe4j/kernels/backend-cpu/";
  private static final Path SOURCES = Path.of("src/main/c");

  private static Properties manifest() throws IOException {
    Properties p = new Properties();
    try (InputStream in =
        Objects.requireNonNull(
            CompiledKernelsTest.class.getResourceAsStream(ROOT + "manifest.properties"))) {
      p.load(in);
    }
    return p;
  }

  private static String sha256(byte[] data) {
    try {
      return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(data));
    } catch (NoSuchAlgorithmException e) {
      throw new IllegalStateException(e);
    }
  }

  @Test
  void sourcesAreThoseThatWereCompiled() throws IOException {
    Properties manifest = manifest();
    List<String> names;
    try (Stream<Path> files = Files.list(SOURCES)) {
      names =
          files
              .map(f -> f.getFileName().toString())
              .filter(n -> n.matches(".*\\.(c|h|py)"))
              .sorted()
              .toList();
    }
    assertThat(names).isNotEmpty();
    assertThat(manifest.stringPropertyNames().stream().filter(n -> n.startsWith("source.")))
        .containsExactlyInAnyOrderElementsOf(names.stream().map(n -> "source." + n).toList());
    for (String name : names) {
      assertThat(manifest.getProperty("source." + name))
          .as("%s has changed: run python3 tools/kernels/build.py backend-cpu", name)
          .isEqualTo(sha256(Files.readAllBytes(SOURCES.resolve(name))));
    }
  }

  @Test
  void librariesAreThoseOfTheManifest() throws IOException {
    Properties manifest = manifest();
    List<String> libraries =
        manifest.stringPropertyNames().stream().filter(n -> n.startsWith("library.")).toList();
    assertThat(libraries)
        .containsExactlyInAnyOrder("library.linux-x86-64", "library.linux-aarch64");
    for (String library : libraries) {
      String target = library.substring("library.".length());
      try (InputStream in =
          Objects.requireNonNull(
              CompiledKernelsTest.class.getResourceAsStream(ROOT + target + "/libmoe.so"))) {
        assertThat(sha256(in.readAllBytes())).isEqualTo(manifest.getProperty(library));
      }
    }
  }
}
