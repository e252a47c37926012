package io.moe4j.cuda.ops;

import io.moe4j.api.platform.ComputeCapability;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaDeviceProvider;
import io.moe4j.cuda.Kernel;
import io.moe4j.cuda.KernelLibrary;
import io.moe4j.cuda.KernelSpec;
import java.util.List;
import java.util.Optional;
import java.util.Set;
import java.util.stream.Stream;

/**
 * The kernels that backends share around their own grouped products: {@link TileSort}, {@link
 * ShrinkKernel}, {@link CombineKernel}, {@link PackKernel}. One for each prepared layer; safe for
 * several threads.
 *
 * @since 0.2.0
 */
public final class ExpertKernels {
  /** Read when a device is there to run them; a machine without one never parses the manifest. */
  private static final class Holder {
    static final KernelLibrary LIBRARY = KernelLibrary.of(ExpertKernels.class, "moe-cuda-triton");
  }

  private final KernelSet set;
  private final boolean hopper;

  /**
   * Loads nothing yet.
   *
   * @param device where to run
   */
  public ExpertKernels(CudaDevice device) {
    ComputeCapability card = CudaDeviceProvider.capability(device.info());
    hopper = isHopper(card);
    set =
        new KernelSet(
            device, List.of(Holder.LIBRARY, SharedKernels.LIBRARY), Set.of(), this::raiseLimits);
  }

  private void raiseLimits(Kernel kernel) {
    if (hopper && kernel.spec().name().equals(TileSort.KERNEL)) {
      kernel.allowSharedBytes(TileSort.HOPPER_SHARED_BYTES);
    }
  }

  /**
   * {@return whether a card is of capability 9.0}
   *
   * @param card its capability
   */
  public static boolean isHopper(ComputeCapability card) {
    return card.major() == 9 && card.minor() == 0;
  }

  /** {@return the library of the Triton kernels among them, to see which variants there are} */
  public static KernelLibrary library() {
    return Holder.LIBRARY;
  }

  /** {@return every kernel that can come from here, for a key of what results depend on} */
  public static Stream<KernelSpec> all() {
    return Stream.concat(
        Holder.LIBRARY.kernels().stream(),
        SharedKernels.LIBRARY.kernels().stream().filter(k -> k.name().equals(TileSort.KERNEL)));
  }

  /**
   * Why a device cannot run a layer's shared kernels, if it cannot: these or those of {@link
   * SharedKernels}. The kernels of CUDA C++ need the newer driver, so they are asked first.
   *
   * @param device a CUDA device
   * @return one clause with the offending version and the needed one, for a backend's refusal
   */
  public static Optional<String> whyUnsupported(DeviceInfo device) {
    return SharedKernels.whyUnsupported(device).or(() -> Holder.LIBRARY.whyUnsupported(device));
  }

  Kernel get(String name, String... constants) {
    return set.get(name, constants);
  }

  boolean hopper() {
    return hopper;
  }
}
