package io.moe4j.backend.flashinfer;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.platform.ComputeCapability;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.BackendPriority;
import java.util.Optional;

/**
 * Where FlashInfer's experts stand, and why. Figures are times over the floor of bytes and flops on
 * an H200, geometric means over three layers, for T up to 64 / 256 and 1024 / 4096 and more.
 *
 * <table>
 * <caption>Priorities</caption>
 * <tr><th>device</th><th>experts</th><th>weights</th><th>stands</th><th>because</th></tr>
 * <tr><td>9.0</td><td>cutlass</td><td>bf16, f16</td><td>behind triton</td>
 *   <td>1.27 / 1.27 / 1.64 with tuned tactics; triton 1.06 / 1.13 / 1.45</td></tr>
 * <tr><td>9.0</td><td>cutlass</td><td>FP8 per tensor, static</td><td>in front of triton</td>
 *   <td>1.50 / 1.38 / 1.72 with tuned tactics; block-scaled FP8 in Triton 1.45 / 1.70 / 2.91</td></tr>
 * <tr><td>9.0</td><td>cutlass</td><td>MXFP4</td><td>behind triton</td>
 *   <td>3.14 / 2.82 / 2.55 with tuned tactics and up to three times that without; triton was not
 *   measured beside it</td></tr>
 * <tr><td>9.0</td><td>cutlass</td><td>FP8 in blocks</td><td>behind triton</td>
 *   <td>never run by this project</td></tr>
 * <tr><td>others</td><td>both</td><td>all</td><td>behind triton</td>
 *   <td>never run on such a card by this project</td></tr>
 * </table>
 */
final class Priorities {
  private static final int STEP = 50;

  /** Another backend that fits is taken unless this one is asked for. */
  static final int BEHIND = BackendPriority.GPU_PORTABLE - STEP;

  /** Taken before kernels that run on any card, behind those that are tuned for this one. */
  static final int IN_FRONT = BackendPriority.GPU_PORTABLE + STEP;

  private Priorities() {}

  static int cutlass(MoeConfig config, Platform platform) {
    boolean hopper =
        platform
            .device(DeviceType.CUDA)
            .flatMap(DeviceInfo::capability)
            .equals(Optional.of(new ComputeCapability(9, 0)));
    return hopper && CutlassScheme.of(config).equals(Optional.of(CutlassScheme.FP8_TENSOR))
        ? IN_FRONT
        : BEHIND;
  }

  /** Never run on a card by this project: only where nothing else fits, or by name. */
  static int trtllm() {
    return BEHIND;
  }
}
