package io.moe4j.checkpoint;

import java.nio.file.Files;
import java.nio.file.Path;

/** Finds the golden fixtures in the repository, whatever directory the tests run in. */
final class Fixtures {
  private Fixtures() {}

  static Path root() {
    return testdata("fixtures");
  }

  /** Tiny checkpoints of the families that are not among the fixtures. */
  static Path families() {
    return testdata("families");
  }

  /** Small quantised checkpoints, one of each format. */
  static Path quantised() {
    return testdata("quantised");
  }

  /** Inputs from public reports on other systems, each with the right result or none. */
  static Path cases() {
    return testdata("cases");
  }

  /** What PEFT makes of settings, recorded. */
  static Path peft() {
    return testdata("peft");
  }

  private static Path testdata(String name) {
    Path at = Path.of("").toAbsolutePath();
    while (at != null) {
      Path found = at.resolve("testdata").resolve(name);
      if (Files.isDirectory(found)) {
        return found;
      }
      at = at.getParent();
    }
    throw new IllegalStateException("no testdata above " + Path.of("").toAbsolutePath());
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
