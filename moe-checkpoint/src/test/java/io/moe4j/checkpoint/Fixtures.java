package io.moe4j.checkpoint;

import java.nio.file.Files;
import java.nio.file.Path;

/** Finds the golden fixtures in the repository, whatever directory the tests run in. */
final class Fixtures {
  private Fixtures() {}

  static Path root() {
    Path at = Path.of("").toAbsolutePath();
    while (at != null) {
      Path fixtures = at.resolve("testdata").resolve("fixtures");
      if (Files.isDirectory(fixtures)) {
        return fixtures;
      }
      at = at.getParent();
    }
    throw new IllegalStateException("no testdata/fixtures above " + Path.of("").toAbsolutePath());
  }

  static Path model(String name) {
    return root().resolve(name).resolve("model");
  }

  static Path adapter(String model, String adapter) {
    return root().resolve(model).resolve("adapters").resolve(adapter);
  }

  static Path io(String model) {
    return root().resolve(model).resolve("io.safetensors");
  }
}
