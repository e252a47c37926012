package io.moe4j.cuda.ops;

import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.tensor.DType;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.Kernel;
import io.moe4j.cuda.KernelLibrary;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/** This package's kernels, by the float types they read and write. */
public final class SharedKernels {
  static final KernelLibrary LIBRARY = KernelLibrary.of(SharedKernels.class, "moe-cuda");

  private static final List<DType> TYPES = List.of(DType.F32, DType.BF16, DType.F16);
  private static final List<String> NAMES = List.of("f32", "bf16", "f16");

  private SharedKernels() {}

  /**
   * Why a device cannot run these kernels (routing, dense products, combine), if it cannot: without
   * them there is no layer on it, whatever a backend brings along.
   *
   * @param device its description
   * @return one clause with the offending version and the needed one, for a backend's refusal
   */
  public static Optional<String> whyUnsupported(DeviceInfo device) {
    return LIBRARY.whyUnsupported(device);
  }

  static Kernel load(CudaDevice device, String name) {
    return load(device, name, Map.of());
  }

  static Kernel load(CudaDevice device, String name, Map<String, String> constants) {
    return device.kernel(LIBRARY, LIBRARY.select(device.info(), name, constants));
  }

  /** Indexed by {@link #index} of the two types. */
  static Kernel[][] table(CudaDevice device, String name, String first, String second) {
    Kernel[][] table = new Kernel[TYPES.size()][TYPES.size()];
    for (int a = 0; a < TYPES.size(); a++) {
      for (int b = 0; b < TYPES.size(); b++) {
        table[a][b] = load(device, name, Map.of(first, NAMES.get(a), second, NAMES.get(b)));
      }
    }
    return table;
  }

  static Kernel[] table(CudaDevice device, String name, String type) {
    Kernel[] table = new Kernel[TYPES.size()];
    for (int a = 0; a < TYPES.size(); a++) {
      table[a] = load(device, name, Map.of(type, NAMES.get(a)));
    }
    return table;
  }

  /** Where a float type stands in the tables; {@code who} is named if it is another one. */
  static int index(String who, DType type) {
    int i = TYPES.indexOf(type);
    if (i < 0) {
      throw new IllegalArgumentException(who + " is " + type + ", must be F32, BF16 or F16");
    }
    return i;
  }

  /** The manifest's name of a type. */
  static String name(DType type) {
    return NAMES.get(index("type", type));
  }

  /** A count as a kernel takes it. */
  static int size(String what, long n) {
    if (n > Integer.MAX_VALUE) {
      throw new IllegalArgumentException(what + " is " + n + ", kernels count in 32 bits");
    }
    return (int) n;
  }
}
