package io.moe4j.backend.triton;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.Support;
import io.moe4j.api.spi.Support.Code;
import io.moe4j.api.tensor.DType;
import java.util.Optional;

/** What the kernels can do, as a pure function. */
final class TritonSupport {
  private TritonSupport() {}

  static Support check(MoeConfig c, Platform platform) {
    Support.Checks checks = Support.checks();
    Optional<DeviceInfo> device = platform.device(DeviceType.CUDA);
    checks.require(device.isPresent(), Code.DEVICE, () -> platform.whyAbsent(DeviceType.CUDA));
    device
        .flatMap(d -> TritonKernels.library().whyUnsupported(d))
        .ifPresent(why -> checks.require(false, Code.CAPABILITY, () -> why));
    DType w = c.weightDtype();
    checks.require(
        w == DType.BF16 || w == DType.F16,
        Code.DTYPE,
        () -> "weight dtype " + w + " is none of BF16, F16");
    checks.require(
        c.inputDtype() == w,
        Code.DTYPE,
        () -> "input dtype " + c.inputDtype() + " is not the weights' " + w);
    checks.require(
        c.quantScheme().isNone(),
        Code.QUANTIZATION,
        () -> "quantisation " + c.quantScheme() + " is not none");
    checks.require(
        c.numLocalExperts() <= SortLaunches.MAX_EXPERTS,
        Code.SIZE,
        () -> c.numLocalExperts() + " local experts > " + SortLaunches.MAX_EXPERTS);
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
}
