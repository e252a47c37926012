package io.moe4j.backend.marlin;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.BackendPriority;
import io.moe4j.api.spi.Support;
import io.moe4j.api.spi.Support.Code;
import io.moe4j.api.tensor.DType;
import io.moe4j.cuda.ops.SlotTable;
import io.moe4j.cuda.ops.TileSort;
import java.util.Optional;

/** What the kernels can do, as a pure function. */
final class MarlinSupport {
  /**
   * In front of kernels for any card, of triton's for MXFP4 as well: on an H200 a layer of gpt-oss
   * takes three quarters of their time for up to 64 tokens, and 0.88 to 1.13 of it for more.
   */
  static final int PRIORITY = BackendPriority.GPU_PORTABLE + 100;

  private MarlinSupport() {}

  static Support check(MoeConfig c, Platform platform) {
    Support.Checks checks = Support.checks();
    Optional<DeviceInfo> device = platform.device(DeviceType.CUDA);
    checks.require(device.isPresent(), Code.DEVICE, () -> platform.whyAbsent(DeviceType.CUDA));
    device
        .flatMap(MarlinKernels::whyUnsupported)
        .ifPresent(why -> checks.require(false, Code.CAPABILITY, () -> why));
    whyNotPacked(c).ifPresent(why -> checks.require(false, Code.QUANTIZATION, () -> why));
    DType w = c.weightDtype();
    checks.require(
        w == DType.BF16 || w == DType.F16,
        Code.DTYPE,
        () -> "weights dequantise to " + w + ", which is none of BF16, F16");
    checks.require(
        c.inputDtype() == w,
        Code.DTYPE,
        () -> "input dtype " + c.inputDtype() + " is not the weights' " + w);
    checks.require(
        c.numLocalExperts() <= TileSort.MAX_EXPERTS,
        Code.SIZE,
        () -> c.numLocalExperts() + " local experts > " + TileSort.MAX_EXPERTS);
    checks.require(
        !c.batchInvariant(),
        Code.BATCH_INVARIANCE,
        () -> "batchInvariant is true, must be false: tiles and splits follow the batch size");
    c.lora()
        .ifPresent(l ->
            checks.require(
                l.maxRank() <= SlotTable.MAX_RANK,
                Code.LORA,
                () -> "LoRA rank " + l.maxRank() + " > " + SlotTable.MAX_RANK));
    return checks.result();
  }

  private static Optional<String> whyNotPacked(MoeConfig c) {
    if (!c.isQuantized()) {
      return Optional.of(
          "weights are plain "
              + c.weightDtype()
              + ", this backend is for packed ones (triton computes with plain ones)");
    }
    if (c.uniformScheme().isEmpty()) {
      return Optional.of(
          "weights are of several kinds, " + c.quantSchemes() + ", must all be of one");
    }
    QuantScheme scheme = c.uniformScheme().get();
    if (c.quantizedActivations() && !scheme.activations().isNone()) {
      return Optional.of(
          "activations are to be quantised ("
              + scheme.activations()
              + "), here they stay "
              + c.weightDtype());
    }
    return PackedLayout.reasonAgainst(scheme);
  }
}
