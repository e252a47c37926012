package io.moe4j.backend.triton;

import io.moe4j.api.DeviceException;
import io.moe4j.api.platform.ComputeCapability;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.tensor.DType;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaDeviceProvider;
import io.moe4j.cuda.Kernel;
import io.moe4j.cuda.KernelLibrary;
import io.moe4j.cuda.KernelSpec;
import io.moe4j.cuda.ops.SharedKernels;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentHashMap;

/** This module's kernels on one device, loaded when first asked for. Safe for several threads. */
final class TritonKernels {
  /** Read when a device is there to run them; a machine without one never parses the manifest. */
  private static final class Holder {
    static final KernelLibrary LIBRARY = KernelLibrary.of(TritonKernels.class, "backend-triton");
    static final KernelLibrary CUDA = KernelLibrary.of(TritonKernels.class, "backend-triton-cuda");
  }

  private record Found(KernelLibrary library, KernelSpec spec) {}

  /** What a kernel's tensor maps are for is known from its parameters, not asked for. */
  private static final List<String> DERIVED = List.of("xd", "xh", "wd");

  private static final List<Integer> UNROLLED = List.of(1, 2, 4, 6, 8);

  private static final int STAGES_120 = 2;
  private static final int STAGES = 3;

  private final CudaDevice device;
  private final Map<String, Found> specs = new HashMap<>();
  private final Map<String, Kernel> loaded = new ConcurrentHashMap<>();
  private final ComputeCapability capability;
  private final int multiprocessors;

  TritonKernels(CudaDevice device) {
    this.device = device;
    this.capability = CudaDeviceProvider.capability(device.info());
    this.multiprocessors =
        Integer.parseInt(device.info().properties().getOrDefault("multiprocessors", "1"));
    for (KernelLibrary library : List.of(Holder.LIBRARY, Holder.CUDA)) {
      for (String name : library.kernels().stream().map(KernelSpec::name).distinct().toList()) {
        for (KernelSpec k :
            library.variants(name, capability, CudaDeviceProvider.ptxIsa(device.info()))) {
          Map<String, String> constants = new TreeMap<>(k.constants());
          DERIVED.forEach(constants::remove);
          // The same tile may be there for an older target with other boxes: the newer one wins.
          specs.merge(
              key(name, constants),
              new Found(library, k),
              (a, b) -> a.spec().arch().compareTo(b.spec().arch()) >= 0 ? a : b);
        }
      }
    }
  }

  static KernelLibrary library() {
    return Holder.LIBRARY;
  }

  /** {@return the kernels of {@code src/main/cuda}} */
  static KernelLibrary cudaLibrary() {
    return Holder.CUDA;
  }

  /**
   * Why a card or its driver cannot run a layer, if it cannot. The kernels of CUDA C++ need the
   * newer driver, so they are asked first: what they answer is enough for the others as well.
   *
   * @param device a CUDA device
   * @return one clause for the oracle's table
   */
  static Optional<String> whyUnsupported(DeviceInfo device) {
    return SharedKernels.whyUnsupported(device).or(() -> Holder.LIBRARY.whyUnsupported(device));
  }

  /** Whether the tiles tuned for Hopper are there for a type. */
  static boolean tuned(DeviceInfo info, DType type) {
    ComputeCapability c = CudaDeviceProvider.capability(info);
    return c.major() == 9 && c.minor() == 0 && type == DType.BF16;
  }

  /** Pipeline stages of the portable tiles for a card. */
  static int portableStages(DeviceInfo info) {
    return CudaDeviceProvider.capability(info).major() == 12 ? STAGES_120 : STAGES;
  }

  /**
   * A kernel.
   *
   * @param name its name
   * @param constants keys and values in turn, all of the variant's but those of its tensor maps
   * @return the kernel, loaded
   */
  Kernel get(String name, String... constants) {
    StringBuilder request = new StringBuilder(name);
    for (String c : constants) {
      request.append(' ').append(c);
    }
    Kernel known = loaded.get(request.toString());
    return known != null ? known : load(request.toString(), name, constants);
  }

  private Kernel load(String request, String name, String... constants) {
    Map<String, String> wanted = new TreeMap<>();
    for (int i = 0; i < constants.length; i += 2) {
      wanted.put(constants[i], constants[i + 1]);
    }
    Found found = specs.get(key(name, wanted));
    if (found == null) {
      List<String> there = new ArrayList<>();
      specs.keySet().stream().filter(k -> k.startsWith(name + "{")).sorted().forEach(there::add);
      throw new DeviceException(
          "no kernel "
              + key(name, wanted)
              + " for compute capability "
              + capability
              + "; there are "
              + there);
    }
    Kernel kernel = device.kernel(found.library(), found.spec());
    if (spreads(found.spec())) {
      kernel.allowSharedBytes(EvenSpread.MOST);
    }
    if (hopper() && found.spec().name().equals("sort")) {
      kernel.allowSharedBytes(SortLaunches.HOPPER_SHARED_BYTES);
    }
    loaded.put(request, kernel);
    return kernel;
  }

  /**
   * {@return whether a kernel is a GEMM of single pairs that starts during a shrink, on a card that
   * {@link EvenSpread} knows}
   *
   * @param kernel the kernel
   */
  boolean spreads(KernelSpec kernel) {
    return hopper()
        && kernel.name().equals("gemm")
        && "1".equals(kernel.constants().get("naive"))
        && "1".equals(kernel.constants().get("lora"));
  }

  /** {@return multiprocessors of the card} */
  int multiprocessors() {
    return multiprocessors;
  }

  /** {@return whether the combine is there with this many pairs a token known at compile time} */
  boolean unrolled(int topK) {
    return hopper() && UNROLLED.contains(topK);
  }

  /** {@return whether the card's compute capability is 9.0} */
  boolean hopper() {
    return capability.major() == 9 && capability.minor() == 0;
  }

  private static String key(String name, Map<String, String> constants) {
    return name + constants;
  }

  static String type(DType type) {
    return switch (type) {
      case BF16 -> "bf16";
      case F16 -> "f16";
      case F32 -> "f32";
      default -> throw new IllegalArgumentException("no kernels for " + type);
    };
  }
}
