package io.moe4j.backend.cpu;

import io.moe4j.backend.cpu.options.PackPolicy;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Locale;
import java.util.stream.Stream;

/** Whether packed weights have room beside everything else, the page cache included. */
final class MemoryRoom {
  private MemoryRoom() {}

  /** {@return why not to pack; empty = pack} */
  static String refusal(PackPolicy policy, long bytes) {
    return switch (policy) {
      case ALWAYS -> "";
      case NEVER -> "packing is switched off";
      case AUTO -> {
        long available = availableBytes();
        yield bytes <= available / 4 * 3
            ? ""
            : "packed weights would take "
                + text(bytes)
                + " of "
                + text(available)
                + " that are available (pack = always packs all the same)";
      }
    };
  }

  /** {@return like {@code 1.1 MiB} or {@code 22.1 GiB}} */
  static String text(long bytes) {
    double mebibytes = bytes / (double) (1 << 20);
    return mebibytes < 1024
        ? String.format(Locale.ROOT, "%.1f MiB", mebibytes)
        : String.format(Locale.ROOT, "%.1f GiB", mebibytes / 1024);
  }

  /**
   * {@return what the system could give without swapping, page cache included; {@link
   * Long#MAX_VALUE} if unknown}
   */
  static long availableBytes() {
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
