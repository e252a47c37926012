package io.moe4j.cli;

import io.moe4j.api.platform.SystemMemory;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.stream.Stream;

/** What can be told of this machine from Java, for doctor and bench. */
public final class Machine {
  private static final Path CPUINFO = Path.of("/proc/cpuinfo");
  private static final Path HUGE_PAGES = Path.of("/sys/kernel/mm/transparent_hugepage/enabled");

  private Machine() {}

  /** {@return the processor's model, or its architecture where the system does not tell} */
  public static String processor() {
    if (Files.isReadable(CPUINFO)) {
      try (Stream<String> lines = Files.lines(CPUINFO)) {
        String model =
            lines
                .filter(l -> l.startsWith("model name"))
                .map(l -> l.substring(l.indexOf(':') + 1).strip())
                .findFirst()
                .orElse("");
        if (!model.isEmpty()) {
          return model;
        }
      } catch (IOException e) {
        return System.getProperty("os.arch");
      }
    }
    return System.getProperty("os.arch");
  }

  /** {@return processors that this JVM may use} */
  public static int processors() {
    return Runtime.getRuntime().availableProcessors();
  }

  /** {@return the machine's memory in bytes (the container's, if that is less), 0 if unknown} */
  public static long memoryBytes() {
    return ManagementFactory.getOperatingSystemMXBean()
            instanceof com.sun.management.OperatingSystemMXBean os
        ? os.getTotalMemorySize()
        : 0;
  }

  /**
   * {@return memory that this process could still take in bytes, page cache counted as free, in a
   * container up to its limit; 0 if unknown}
   */
  public static long availableMemoryBytes() {
    long available = SystemMemory.availableBytes(memoryBytes());
    if (available < Long.MAX_VALUE) {
      return available;
    }
    return ManagementFactory.getOperatingSystemMXBean()
            instanceof com.sun.management.OperatingSystemMXBean os
        ? os.getFreeMemorySize()
        : 0;
  }

  /** {@return Java's version and vendor} */
  public static String java() {
    return Runtime.version() + ", " + System.getProperty("java.vm.name");
  }

  /** {@return the operating system} */
  public static String system() {
    return System.getProperty("os.name")
        + " "
        + System.getProperty("os.version")
        + " "
        + System.getProperty("os.arch");
  }

  /** {@return the vector width in use, in words} */
  public static String vectors() {
    return hasVectorModule()
        ? VectorWidth.bits() + " bits"
        : "none: jdk.incubator.vector is absent";
  }

  /** {@return whether this JVM was started with the Vector API} */
  public static boolean hasVectorModule() {
    return ModuleLayer.boot().findModule("jdk.incubator.vector").isPresent();
  }

  /** {@return the setting of transparent huge pages on Linux, empty elsewhere} */
  static String hugePages() {
    try {
      String text = Files.isReadable(HUGE_PAGES) ? Files.readString(HUGE_PAGES).strip() : "";
      int open = text.indexOf('[');
      int close = text.indexOf(']');
      return open >= 0 && close > open ? text.substring(open + 1, close) : text;
    } catch (IOException e) {
      return "";
    }
  }

  /** Loaded only where the module is. */
  private static final class VectorWidth {
    static int bits() {
      return jdk.incubator.vector.FloatVector.SPECIES_PREFERRED.vectorBitSize();
    }
  }
}
