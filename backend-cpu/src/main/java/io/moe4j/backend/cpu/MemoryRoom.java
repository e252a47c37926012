package io.moe4j.backend.cpu;

import io.moe4j.api.platform.SystemMemory;
import io.moe4j.backend.cpu.options.PackPolicy;
import java.lang.management.ManagementFactory;
import java.util.Locale;

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

  /** {@return what the system could give, in a container up to its limit; see there} */
  static long availableBytes() {
    return SystemMemory.availableBytes(memoryBytes());
  }

  /** {@return the machine's memory in bytes (the container's, if that is less), 0 if unknown} */
  static long memoryBytes() {
    return ManagementFactory.getOperatingSystemMXBean()
            instanceof com.sun.management.OperatingSystemMXBean os
        ? os.getTotalMemorySize()
        : 0;
  }
}
