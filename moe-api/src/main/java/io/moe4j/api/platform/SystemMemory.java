package io.moe4j.api.platform;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;

/**
 * How much memory this process could still take. Asked anew at each call.
 *
 * @since 0.2.0
 */
public final class SystemMemory {
  private static final Path PROC = Path.of("/proc");

  private SystemMemory() {}

  /**
   * {@return bytes that the system could give without swapping, page cache included; {@link
   * Long#MAX_VALUE} if it does not say} In a container it is at most what the limit leaves beside
   * this process's own memory. What other processes of the container have is not known.
   *
   * @param limitBytes of the container, or all of the machine's memory: what {@code
   *     com.sun.management.OperatingSystemMXBean.getTotalMemorySize} gives; 0 = unknown
   */
  public static long availableBytes(long limitBytes) {
    return availableBytes(PROC, limitBytes);
  }

  /** The same with Linux's files elsewhere. */
  static long availableBytes(Path proc, long limitBytes) {
    List<String> machine = lines(proc.resolve("meminfo"));
    long available = bytes(machine, "MemAvailable:");
    if (available < 0) {
      return Long.MAX_VALUE;
    }
    long total = bytes(machine, "MemTotal:");
    if (limitBytes <= 0 || (total >= 0 && limitBytes >= total)) {
      return available;
    }
    // A container's page cache counts against its limit, but goes when memory is asked for: what
    // the JDK calls free there would be nearly nothing after a checkpoint has been read.
    List<String> process = lines(proc.resolve("self").resolve("status"));
    long own = Math.max(0, bytes(process, "RssAnon:")) + Math.max(0, bytes(process, "RssShmem:"));
    return Math.min(available, Math.max(0, limitBytes - own));
  }

  private static List<String> lines(Path file) {
    try {
      return Files.isReadable(file) ? Files.readAllLines(file) : List.of();
    } catch (IOException e) {
      return List.of();
    }
  }

  /** A line like {@code MemTotal: 24579904 kB}; -1 if there is none. */
  private static long bytes(List<String> lines, String name) {
    for (String line : lines) {
      if (line.startsWith(name)) {
        try {
          return Long.parseLong(line.substring(name.length()).replace("kB", "").strip()) << 10;
        } catch (NumberFormatException e) {
          return -1;
        }
      }
    }
    return -1;
  }
}
