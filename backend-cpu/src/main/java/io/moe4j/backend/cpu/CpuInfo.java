package io.moe4j.backend.cpu;

import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.backend.cpu.options.CpuProperties;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Optional;
import java.util.TreeMap;
import java.util.stream.Stream;
import jdk.incubator.vector.FloatVector;

/**
 * What is known of the host processor. Property keys: {@code arch} (as in {@code os.arch}), {@code
 * cores} (processors this JVM may use), {@code vector-bits} (the Vector API's preferred float
 * width, {@code 0} while {@code jdk.incubator.vector} is not in the boot layer), {@code kernels}
 * (which compute experts, and why not those in C).
 */
final class CpuInfo {
  private CpuInfo() {}

  static DeviceInfo host() {
    return Holder.HOST;
  }

  private static final class Holder {
    static final DeviceInfo HOST = read();
  }

  private static DeviceInfo read() {
    var properties = new TreeMap<String, String>();
    properties.put("arch", System.getProperty("os.arch", "unknown"));
    properties.put("cores", Integer.toString(Runtime.getRuntime().availableProcessors()));
    properties.put("vector-bits", Integer.toString(vectorBits()));
    properties.put("kernels", Mlps.describe(CpuProperties.read()));
    return new DeviceInfo(
        DeviceId.CPU, modelName(), Optional.empty(), MemoryRoom.memoryBytes(), properties);
  }

  private static int vectorBits() {
    return ModuleLayer.boot().findModule("jdk.incubator.vector").isPresent()
        ? FloatVector.SPECIES_PREFERRED.vectorBitSize()
        : 0;
  }

  /** Linux names the processor in a file; elsewhere its architecture has to do. */
  private static String modelName() {
    String arch = System.getProperty("os.arch", "unknown");
    Path cpuinfo = Path.of("/proc/cpuinfo");
    if (!Files.isReadable(cpuinfo)) {
      return arch + " processor";
    }
    try (Stream<String> lines = Files.lines(cpuinfo)) {
      return lines
          .filter(line -> line.startsWith("model name"))
          .map(line -> line.substring(line.indexOf(':') + 1).strip())
          .findFirst()
          .orElse(arch + " processor");
    } catch (IOException | java.io.UncheckedIOException e) {
      return arch + " processor";
    }
  }
}
