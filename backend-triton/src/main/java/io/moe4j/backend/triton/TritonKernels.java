package io.moe4j.backend.triton;

import io.moe4j.api.platform.ComputeCapability;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.tensor.DType;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaDeviceProvider;
import io.moe4j.cuda.Kernel;
import io.moe4j.cuda.KernelLibrary;
import io.moe4j.cuda.KernelSpec;
import io.moe4j.cuda.ops.ExpertKernels;
import io.moe4j.cuda.ops.KernelSet;
import java.util.List;
import java.util.Optional;
import java.util.Set;

/** This module's kernels on one device, loaded when first asked for. Safe for several threads. */
final class TritonKernels {
  /** Read when a device is there to run them; a machine without one never parses the manifest. */
  private static final class Holder {
    static final KernelLibrary LIBRARY = KernelLibrary.of(TritonKernels.class, "backend-triton");
    static final KernelLibrary CUDA = KernelLibrary.of(TritonKernels.class, "backend-triton-cuda");
  }

  /** What a kernel's tensor maps are for is known from its parameters, not asked for. */
  private static final Set<String> DERIVED = Set.of("xd", "xh", "wd");

  private static final int STAGES_120 = 2;
  private static final int STAGES = 3;

  private final KernelSet set;
  private final ComputeCapability capability;
  private final int multiprocessors;

  TritonKernels(CudaDevice device) {
    this.capability = CudaDeviceProvider.capability(device.info());
    this.multiprocessors =
        Integer.parseInt(device.info().properties().getOrDefault("multiprocessors", "1"));
    this.set =
        new KernelSet(device, List.of(Holder.LIBRARY, Holder.CUDA), DERIVED, this::raiseLimits);
  }

  private void raiseLimits(Kernel kernel) {
    if (spreads(kernel.spec())) {
      kernel.allowSharedBytes(EvenSpread.MOST);
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
   * Why a card or its driver cannot run a layer, if it cannot. The shared kernels need the newer
   * driver, so they are asked first: what they answer is enough for the others as well.
   *
   * @param device a CUDA device
   * @return one clause for the oracle's table
   */
  static Optional<String> whyUnsupported(DeviceInfo device) {
    return ExpertKernels.whyUnsupported(device).or(() -> Holder.LIBRARY.whyUnsupported(device));
  }

  /** Whether the tiles tuned for Hopper are there for a type. */
  static boolean tuned(DeviceInfo info, DType type) {
    return ExpertKernels.isHopper(CudaDeviceProvider.capability(info)) && type == DType.BF16;
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
    return set.get(name, constants);
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

  private boolean hopper() {
    return ExpertKernels.isHopper(capability);
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
