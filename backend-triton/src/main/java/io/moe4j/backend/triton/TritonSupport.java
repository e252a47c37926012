package io.moe4j.backend.triton;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.Support;
import io.moe4j.api.spi.Support.Code;
import io.moe4j.api.tensor.DType;
import io.moe4j.backend.triton.launch.ExpertMatrices;
import io.moe4j.backend.triton.launch.TritonKernels;
import io.moe4j.backend.triton.options.TritonOptions;
import io.moe4j.backend.triton.options.TritonProperties;
import io.moe4j.cuda.ops.LoraMode;
import io.moe4j.cuda.ops.PaddedSizes;
import io.moe4j.cuda.ops.SlotTable;
import io.moe4j.cuda.ops.TileSort;
import java.util.Optional;
import java.util.stream.Stream;

/** What the kernels can do, as a pure function. */
final class TritonSupport {
  private TritonSupport() {}

  /**
   * @param properties defaults of the layer's options; where it has none and they are mistyped,
   *     that is a reason
   */
  static Support check(MoeConfig c, Platform platform, TritonProperties properties) {
    Support.Checks checks = Support.checks();
    String fault = properties.fault(c);
    checks.require(fault == null, Code.LORA, () -> String.valueOf(fault));
    TritonOptions options = fault == null ? properties.options(c) : TritonOptions.DEFAULT;
    LoraMode mode = options.lora();
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
    boolean mxfp4 = ExpertMatrices.isMxfp4(c);
    checks.require(
        !c.isQuantized() || mxfp4 || options.unpackWeights(),
        Code.QUANTIZATION,
        () ->
            "quantisation "
                + c.quantSchemes()
                + " is none of: none, mxfp4; "
                + (packed(c) ? "backend-marlin computes it packed, or " : "")
                + "let triton unpack it to "
                + w
                + " when it is prepared: TritonOptions.withUnpackedWeights, -D"
                + TritonProperties.UNPACK
                + "=true");
    checks.require(
        !c.quantizedActivations()
            || c.quantSchemes().stream().allMatch(q -> q.activations().isNone()),
        Code.QUANTIZATION,
        () -> "quantised activations " + c.quantSchemes() + ", accepted: activations as they are");
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
            "the LoRA mode is "
                + mode.text()
                + ", which takes widths that are multiples of "
                + PaddedSizes.VECTOR
                + ", not "
                + c.expertHiddenSize()
                + " and "
                + c.intermediateSize());
    return checks.result();
  }

  /** Whether each product's weights are of one packed scheme. */
  private static boolean packed(MoeConfig c) {
    return Stream.of(c.uniformW13Scheme(), c.uniformW2Scheme())
        .allMatch(s -> s.isPresent() && !s.get().isNone());
  }
}
