package io.moe4j.backend.triton;

import io.moe4j.api.MoeException;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.Support;
import io.moe4j.api.spi.Support.Code;
import io.moe4j.api.tensor.DType;
import io.moe4j.cuda.ops.PaddedSizes;
import io.moe4j.cuda.ops.SlotTable;
import io.moe4j.cuda.ops.TileSort;
import java.util.Optional;
import org.jspecify.annotations.Nullable;

/** What the kernels can do, as a pure function. */
final class TritonSupport {
  private TritonSupport() {}

  /**
   * @param given null = what the property says; where that is no mode, it is a reason
   */
  static Support check(MoeConfig c, Platform platform, @Nullable LoraMode given) {
    Support.Checks checks = Support.checks();
    LoraMode mode = given == null ? ofProperty(checks) : given;
    Optional<DeviceInfo> device = platform.device(DeviceType.CUDA);
    checks.require(device.isPresent(), Code.DEVICE, () -> platform.whyAbsent(DeviceType.CUDA));
    device
        .flatMap(TritonKernels::whyUnsupported)
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
    boolean mxfp4 = isMxfp4(c);
    checks.require(
        !c.isQuantized() || mxfp4,
        Code.QUANTIZATION,
        () -> "quantisation " + c.quantSchemes() + " is none of: none, mxfp4");
    checks.require(
        !mxfp4 || c.activation().isGated(),
        Code.ACTIVATION,
        () -> "mxfp4 with " + c.activation() + ", which has no gate");
    checks.require(
        !mxfp4 || w == DType.BF16, Code.DTYPE, () -> "mxfp4 dequantised to " + w + ", not to BF16");
    int group = QuantScheme.MXFP4.scaleColumns();
    checks.require(
        !mxfp4 || (c.expertHiddenSize() % group == 0 && c.intermediateSize() % group == 0),
        Code.SIZE,
        () ->
            "mxfp4 with widths "
                + c.expertHiddenSize()
                + " and "
                + c.intermediateSize()
                + ", not both multiples of "
                + group);
    checks.require(
        c.numLocalExperts() <= TileSort.MAX_EXPERTS,
        Code.SIZE,
        () -> c.numLocalExperts() + " local experts > " + TileSort.MAX_EXPERTS);
    checks.require(
        c.parallel().tpSize() == 1,
        Code.PARALLEL,
        () -> "tensor-parallel size " + c.parallel().tpSize() + " is not 1");
    checks.require(
        !c.batchInvariant(),
        Code.BATCH_INVARIANCE,
        () -> "batchInvariant is true, must be false: tiles and splits follow the batch size");
    c.lora()
        .ifPresent(l ->
            checks.require(
                mode != LoraMode.FUSED || l.maxRank() <= SlotTable.MAX_RANK,
                Code.LORA,
                () -> "LoRA rank " + l.maxRank() + " > " + SlotTable.MAX_RANK));
    boolean padded = !PaddedSizes.isExact(c);
    checks.require(
        mode == LoraMode.FUSED || c.lora().isEmpty() || !padded,
        Code.LORA,
        () ->
            LoraMode.PROPERTY
                + " is "
                + mode.text()
                + ", which takes widths that are multiples of "
                + PaddedSizes.VECTOR
                + ", not "
                + c.expertHiddenSize()
                + " and "
                + c.intermediateSize());
    return checks.result();
  }

  private static LoraMode ofProperty(Support.Checks checks) {
    try {
      return LoraMode.ofProperty();
    } catch (MoeException e) {
      checks.require(false, Code.LORA, () -> String.valueOf(e.getMessage()));
      return LoraMode.FUSED;
    }
  }

  /** {@return whether all weights are MXFP4, computed with unquantised activations} */
  static boolean isMxfp4(MoeConfig config) {
    return config.uniformScheme().equals(Optional.of(QuantScheme.MXFP4));
  }
}
