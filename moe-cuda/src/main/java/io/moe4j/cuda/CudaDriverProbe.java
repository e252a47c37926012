package io.moe4j.cuda;

import io.moe4j.api.device.DeviceProvider.Probe;
import io.moe4j.api.platform.ComputeCapability;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.SymbolLookup;
import java.nio.channels.FileChannel;
import java.nio.channels.FileLock;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.TreeMap;
import jcuda.driver.CUdevice;
import jcuda.driver.CUdevice_attribute;
import jcuda.driver.CUresult;
import jcuda.driver.JCudaDriver;

/**
 * Looks for the driver, step by step, and keeps the first thing that is missing as a sentence. What
 * touches JCuda lives in a nested class, so that nothing is linked before {@code libcuda.so.1} was
 * found.
 */
final class CudaDriverProbe {
  /** The oldest driver whose library has every function the bindings link: CUDA 12.0. */
  static final int OLDEST_DRIVER = 12000;

  private static final String LIBRARY = "libcuda.so.1";

  private CudaDriverProbe() {}

  static Probe run() {
    String os = System.getProperty("os.name", "");
    if (!os.equals("Linux")) {
      return absent("CUDA support is for Linux, this is " + os);
    }
    try {
      SymbolLookup.libraryLookup(LIBRARY, Arena.global());
    } catch (IllegalArgumentException e) {
      return absent(LIBRARY + " was not found: no NVIDIA driver is installed");
    } catch (IllegalCallerException e) {
      return absent(
          "native access is denied; start java with --enable-native-access="
              + (CudaDriverProbe.class.getModule().isNamed()
                  ? CudaDriverProbe.class.getModule().getName()
                  : "ALL-UNNAMED"));
    }
    try {
      return oneAtATime();
    } catch (LinkageError e) {
      if (e instanceof NoClassDefFoundError && firstLine(e).startsWith("jcuda/")) {
        return absent("JCuda (org.jcuda:jcuda) is not on the class path: no " + firstLine(e));
      }
      return absent(
          "JCuda's native library for "
              + System.getProperty("os.arch")
              + " could not be loaded (org.jcuda:jcuda-natives, classifier linux-x86_64): "
              + firstLine(e));
    } catch (RuntimeException e) {
      return absent("the CUDA driver could not be asked: " + firstLine(e));
    }
  }

  /**
   * JCuda unpacks its native half to a fixed name in the temporary directory and takes what lies
   * there: of two processes that start at once, one would load what the other is still writing.
   */
  private static Probe oneAtATime() {
    Path lock = Path.of(System.getProperty("java.io.tmpdir", "/tmp"), "moe4j-jcuda.lock");
    try (FileChannel file =
            FileChannel.open(lock, StandardOpenOption.CREATE, StandardOpenOption.WRITE);
        FileLock _ = file.lock()) {
      return Jcuda.devices();
    } catch (IOException e) {
      return Jcuda.devices(); // another user's lock, a read-only directory: as without one
    }
  }

  private static Probe absent(String why) {
    return new Probe(List.of(), why);
  }

  private static String firstLine(Throwable e) {
    return String.valueOf(e.getMessage())
        .lines()
        .findFirst()
        .orElse(e.getClass().getName())
        .strip();
  }

  /** Everything that links JCuda. */
  private static final class Jcuda {
    private static final int NAME_BYTES = 256;

    static Probe devices() {
      int[] version = new int[1];
      Cu.check(JCudaDriver.cuDriverGetVersion(version), "cuDriverGetVersion");
      if (version[0] < OLDEST_DRIVER) {
        return absent(
            "the driver is for CUDA "
                + cuda(version[0])
                + ", at least "
                + cuda(OLDEST_DRIVER)
                + " (driver 525) is needed");
      }
      int init = JCudaDriver.cuInit(0);
      if (init == CUresult.CUDA_ERROR_NO_DEVICE) {
        return absent("the driver (CUDA " + cuda(version[0]) + ") sees no NVIDIA device");
      }
      Cu.check(init, "cuInit");
      int[] count = new int[1];
      Cu.check(JCudaDriver.cuDeviceGetCount(count), "cuDeviceGetCount");
      List<DeviceInfo> found = new ArrayList<>();
      for (int ordinal = 0; ordinal < count[0]; ordinal++) {
        found.add(describe(ordinal, version[0]));
      }
      return found.isEmpty()
          ? absent("the driver (CUDA " + cuda(version[0]) + ") sees no NVIDIA device")
          : new Probe(found, "");
    }

    private static DeviceInfo describe(int ordinal, int driver) {
      CUdevice device = new CUdevice();
      Cu.check(JCudaDriver.cuDeviceGet(device, ordinal), "cuDeviceGet");
      byte[] name = new byte[NAME_BYTES];
      Cu.check(JCudaDriver.cuDeviceGetName(name, NAME_BYTES, device), "cuDeviceGetName");
      int length = 0;
      while (length < NAME_BYTES && name[length] != 0) {
        length++;
      }
      long[] memory = new long[1];
      Cu.check(JCudaDriver.cuDeviceTotalMem(memory, device), "cuDeviceTotalMem");
      Map<String, String> p = new TreeMap<>();
      p.put("driver", cuda(driver));
      p.put("ptx-isa", PtxVersion.ofDriver(driver).toString());
      p.put(
          "multiprocessors",
          attribute(device, CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT));
      p.put("l2-bytes", attribute(device, CUdevice_attribute.CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE));
      p.put(
          "shared-bytes-per-block",
          attribute(
              device, CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN));
      return new DeviceInfo(
          new DeviceId(DeviceType.CUDA, ordinal),
          new String(name, 0, length, StandardCharsets.UTF_8),
          Optional.of(
              new ComputeCapability(
                  value(device, CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
                  value(device, CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR))),
          memory[0],
          p);
    }

    private static String attribute(CUdevice device, int which) {
      return Integer.toString(value(device, which));
    }

    private static int value(CUdevice device, int which) {
      int[] v = new int[1];
      Cu.check(JCudaDriver.cuDeviceGetAttribute(v, which, device), "cuDeviceGetAttribute");
      return v[0];
    }

    private static String cuda(int version) {
      return version / 1000 + "." + version % 1000 / 10;
    }
  }
}
