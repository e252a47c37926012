package io.moe4j.backend.marlin;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.BackendPriority;
import io.moe4j.api.spi.Support;
import io.moe4j.api.spi.Support.Code;
import io.moe4j.api.tensor.DType;
import io.moe4j.cuda.ops.LoraMode;
import io.moe4j.cuda.ops.PaddedSizes;
import io.moe4j.cuda.ops.SlotTable;
import io.moe4j.cuda.ops.TileSort;
import java.util.List;
import java.util.Optional;
import org.jspecify.annotations.Nullable;

/** What the kernels can do, as a pure function. */
final class MarlinSupport {
  /**
   * In front of kernels for any card, of triton's for MXFP4 as well: on an H200 a layer of gpt-oss
   * takes three quarters of their time for up to 64 tokens, and 0.88 to 1.13 of it for more.
   */
  static final int PRIORITY = BackendPriority.GPU_PORTABLE + 100;

  /** Kernels divide in f32 ({@code quotient} in tile.cuh), which is exact up to here. */
  private static final int MOST_TOKENS = 1 << 21;

  /** Rows of BATCHED calls are divided by one, which is exact as long as they are in f32. */
  private static final int MOST_ROWS = 1 << 24;

  private MarlinSupport() {}

  /**
   * @param properties defaults of the layer's options; where it has none and they are mistyped,
   *     that is a reason
   */
  static Support check(MoeConfig c, Platform platform, MarlinProperties properties) {
    Support.Checks checks = Support.checks();
    String fault = properties.fault(c);
    checks.require(fault == null, Code.LORA, () -> String.valueOf(fault));
    LoraMode mode = fault == null ? properties.options(c).lora() : LoraMode.FUSED;
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
    boolean batched = c.activationFormat() == ActivationFormat.BATCHED;
    long rows = batched ? (long) c.numLocalExperts() * c.maxTokens() : c.maxTokens();
    long most = batched ? MOST_ROWS : MOST_TOKENS;
    checks.require(
        rows <= most,
        Code.SIZE,
        () ->
            "maxTokens is "
                + c.maxTokens()
                + ", accepted: 1.."
                + (batched ? most / c.numLocalExperts() : most));
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
    int unit = c.activation().isGated() ? PackedLayout.TILE_ROWS : PaddedSizes.VECTOR;
    checks.require(
        mode == LoraMode.FUSED
            || c.lora().isEmpty()
            || (PaddedSizes.isExact(c) && c.intermediateSize() % unit == 0),
        Code.LORA,
        () ->
            "the LoRA mode is "
                + mode.text()
                + ", which takes hidden sizes that are multiples of "
                + PaddedSizes.VECTOR
                + " and intermediate sizes that are multiples of "
                + unit
                + ", not "
                + c.expertHiddenSize()
                + " and "
                + c.intermediateSize());
    return checks.result();
  }

  private static Optional<String> whyNotPacked(MoeConfig c) {
    if (!c.isQuantized()) {
      return Optional.of(
          "weights are plain "
              + c.weightDtype()
              + ", this backend is for packed ones (triton computes with plain ones)");
    }
    return whyNotPacked(c, "w13", c.w13Schemes(), c.uniformW13Scheme().orElse(null))
        .or(() -> whyNotPacked(c, "w2", c.w2Schemes(), c.uniformW2Scheme().orElse(null)));
  }

  /** The products are launched one after the other, so each may have a scheme of its own. */
  private static Optional<String> whyNotPacked(
      MoeConfig c, String product, List<QuantScheme> all, @Nullable QuantScheme scheme) {
    String unpacked =
        "; triton computes the layer unpacked to "
            + c.weightDtype()
            + " (-Dmoe4j.triton.unpack=true)";
    if (scheme == null) {
      return Optional.of(
          product + " weights are of several kinds, " + all + ", must all be of one" + unpacked);
    }
    if (scheme.isNone()) {
      return Optional.of(
          product
              + " weights are plain "
              + c.weightDtype()
              + " beside packed ones ("
              + c.quantSchemes()
              + "), must be packed, too"
              + unpacked);
    }
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
