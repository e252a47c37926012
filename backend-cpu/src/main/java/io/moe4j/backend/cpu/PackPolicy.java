package io.moe4j.backend.cpu;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Locale;
import java.util.stream.Stream;

/**
 * Whether weights are laid out anew for the kernels in C, which takes as much memory as they have,
 * or used in place by the Vector API.
 */
enum PackPolicy {
  /** If the packed weights leave a quarter of the available memory. */
  AUTO,
  /** Without asking. */
  ALWAYS,
  /** Not at all. */
  NEVER;

  /** {@code auto}, {@code always} or {@code never}. */
  static final String PROPERTY = "moe4j.cpu.pack";

  /** {@return what the property says} */
  static PackPolicy configured() {
    String text = System.getProperty(PROPERTY, "auto");
    return Stream.of(values())
        .filter(p -> p.name().toLowerCase(Locale.ROOT).equals(text))
        .findFirst()
        .orElseThrow(() ->
            new IllegalArgumentException(
                "-D" + PROPERTY + " is \"" + text + "\", accepted: auto, always, never"));
  }

  /** {@return why not to pack; empty = pack} */
  String refusal(long bytes) {
    return switch (this) {
      case ALWAYS -> "";
      case NEVER -> "-D" + PROPERTY + "=never";
      case AUTO -> {
        long available = availableBytes();
        yield bytes <= available / 4 * 3
            ? ""
            : "packed weights would take "
                + (bytes >> 20)
                + " MiB of "
                + (available >> 20)
                + " MiB that are available (-D"
                + PROPERTY
                + "=always packs all the same)";
      }
    };
  }

  /** What the system could give without swapping, page cache included; all of it if unknown. */
  private static long availableBytes() {
    try (Stream<String> lines = Files.lines(Path.of("/proc/meminfo"))) {
      return lines
          .filter(line -> line.startsWith("MemAvailable:"))
          .findFirst()
          .map(line -> Long.parseLong(line.replaceAll("\\D", "")) << 10)
          .orElse(Long.MAX_VALUE);
    } catch (IOException | java.io.UncheckedIOException e) {
      return Long.MAX_VALUE;
    }
  }
}
