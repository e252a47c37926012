package io.moe4j.backend.marlin;

import io.moe4j.api.platform.ComputeCapability;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.tensor.DType;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaDeviceProvider;
import io.moe4j.cuda.Kernel;
import io.moe4j.cuda.KernelLibrary;
import io.moe4j.cuda.KernelSpec;
import io.moe4j.cuda.PtxVersion;
import io.moe4j.cuda.ops.ExpertKernels;
import io.moe4j.cuda.ops.KernelSet;
import java.util.List;
import java.util.Optional;
import java.util.Set;

/** This module's kernels on one device, loaded when first asked for. Safe for several threads. */
final class MarlinKernels {
  static final String GEMM = "gemm";
  static final String NARROW = "narrow";
  static final String WIDE = "wide";

  /** What a block may ask for, as devices say it. */
  private static final String SHARED_BYTES = "shared-bytes-per-block";

  /** From this capability on a block may ask for 99 KiB only, where a device does not say it. */
  private static final int NO_ROOM = 12;

  /** Few pairs that are not sorted: w13 with a gate, or w2 with the weighted sum. */
  static final String SINGLE = "single";

  /** Read when a device is there to run them; a machine without one never parses the manifest. */
  private static final class Holder {
    static final KernelLibrary LIBRARY = KernelLibrary.of(MarlinKernels.class, "backend-marlin");
  }

  private final KernelSet set;

  MarlinKernels(CudaDevice device) {
    set = new KernelSet(device, List.of(Holder.LIBRARY), Set.of(), MarlinKernels::raiseLimits);
  }

  private static void raiseLimits(Kernel kernel) {
    if (kernel.spec().name().equals(GEMM)) {
      kernel.allowSharedBytes(
          switch (kernel.spec().constant("kind")) {
            case WIDE -> ProductPlan.WIDE_SHARED_BYTES;
            case SINGLE -> ProductPlan.SINGLE_SHARED_BYTES;
            default -> ProductPlan.NARROW_SHARED_BYTES;
          });
    }
  }

  static KernelLibrary library() {
    return Holder.LIBRARY;
  }

  /**
   * Why a card or its driver cannot run a layer, if it cannot. The shared kernels need the newer
   * driver, so they are asked first.
   */
  static Optional<String> whyUnsupported(DeviceInfo device) {
    return ExpertKernels.whyUnsupported(device).or(() -> Holder.LIBRARY.whyUnsupported(device));
  }

  /** The heights of the products that a card has for a format, ascending. */
  static List<Integer> heights(DeviceInfo device, String kind, String format, DType type) {
    ComputeCapability card = CudaDeviceProvider.capability(device);
    PtxVersion isa = CudaDeviceProvider.ptxIsa(device);
    return Holder.LIBRARY.variants(GEMM, card, isa).stream()
        .filter(k -> has(k, kind, format, type))
        .map(k -> k.intConstant("rows"))
        .sorted()
        .toList();
  }

  /** Whether a card has {@link #SINGLE} for a format, and the shared memory that it asks for. */
  static boolean hasSingle(DeviceInfo device, String format, DType type) {
    ComputeCapability card = CudaDeviceProvider.capability(device);
    PtxVersion isa = CudaDeviceProvider.ptxIsa(device);
    String shared = device.properties().get(SHARED_BYTES);
    boolean room =
        shared == null
            ? card.major() < NO_ROOM
            : Integer.parseInt(shared) >= ProductPlan.SINGLE_SHARED_BYTES;
    return room
        && Holder.LIBRARY.variants(GEMM, card, isa).stream()
            .anyMatch(k -> has(k, SINGLE, format, type));
  }

  private static boolean has(KernelSpec k, String kind, String format, DType type) {
    return k.constant("kind").equals(kind)
        && k.constant("format").equals(format)
        && k.constant("type").equals(name(type));
  }

  Kernel get(String name, String... constants) {
    return set.get(name, constants);
  }

  static String name(DType type) {
    return switch (type) {
      case BF16 -> "bf16";
      case F16 -> "f16";
      default -> throw new IllegalArgumentException("no kernels for " + type);
    };
  }
}
