package io.moe4j.backend.flashinfer;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.Weight;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * A layer's experts as the {@code fused_moe} module wants them: all experts in one tensor, up rows
 * before gate rows, per-tensor scales multiplied out; {@link Mxfp4Weights} and {@link
 * BlockScaledWeights} see to the others. Made on the host and the card while a layer is prepared;
 * owned by the experts.
 */
final class CutlassWeights implements AutoCloseable {
  private final DeviceTensors tensors;
  private final CutlassScheme scheme;
  private final boolean gated;
  private final int experts;
  private final long hidden;
  private final long intermediate;
  private final DType type;
  private final Tensor w13;
  private final Tensor w2;
  private final @Nullable Tensor b13;
  private final @Nullable Tensor b2;
  private final List<Tensor> scales;
  private final @Nullable Tensor inputScale;
  private final float divisor;

  /**
   * @param config the layer
   * @param weights fits {@code config}
   * @param scheme the config's
   * @param device where to
   * @param interleave the module's function for four-bit weights: from, to
   */
  CutlassWeights(
      MoeConfig config,
      ExpertWeights weights,
      CutlassScheme scheme,
      Device device,
      Mxfp4Weights.Interleave interleave) {
    this.tensors = new DeviceTensors(device);
    this.scheme = scheme;
    this.gated = config.activation().isGated();
    this.experts = weights.numExperts();
    this.hidden = scheme.padded(config.expertHiddenSize());
    this.intermediate = scheme.padded(config.intermediateSize());
    this.type = config.inputDtype();
    try {
      switch (scheme) {
        case PLAIN -> {
          w13 = stackW13(weights, type, Weight::plain);
          w2 = stackW2(weights, type, Weight::plain);
          scales = List.of();
          inputScale = null;
          divisor = 0;
        }
        case FP8_TENSOR -> {
          Fp8 fp8 = new Fp8(weights);
          w13 = fp8.w13;
          w2 = fp8.w2;
          scales = fp8.scales;
          inputScale = fp8.inputScale;
          divisor = fp8.input;
        }
        case MXFP4 -> {
          Mxfp4Weights mixed =
              new Mxfp4Weights(weights, gated, hidden, intermediate, tensors, interleave);
          w13 = mixed.w13();
          w2 = mixed.w2();
          scales = mixed.scales();
          inputScale = null;
          divisor = 0;
        }
        case FP8_BLOCK, MXFP4_MXFP8, MXFP8, NVFP4 -> {
          BlockScaledWeights scaled = new BlockScaledWeights(weights, gated, scheme, tensors);
          w13 = scaled.w13();
          w2 = scaled.w2();
          scales = scaled.scales();
          inputScale = null;
          divisor = 0;
        }
        default -> throw new IllegalArgumentException("no weights of " + scheme);
      }
      boolean biased = config.expertBias();
      b13 = biased ? biases13(weights) : null;
      b2 = biased ? biases2(weights) : null;
    } catch (RuntimeException | Error e) {
      tensors.close();
      throw e;
    }
  }

  private interface Elements {
    Tensor of(Weight weight);
  }

  private long rows13() {
    return gated ? 2 * intermediate : intermediate;
  }

  /** The part of an expert's w13 for up (first) or gate (behind it). */
  private Tensor half(Tensor stacked, int expert, boolean gate) {
    return stacked.select(0, expert).narrow(0, gate ? intermediate : 0, intermediate);
  }

  private Tensor stackW13(ExpertWeights weights, DType dtype, Elements elements) {
    long columns = elements.of(weights.expert(0).up()).size(1);
    Tensor to = tensors.allocate(dtype, experts, rows13(), columns);
    for (int e = 0; e < experts; e++) {
      ExpertWeights.Expert x = weights.expert(e);
      tensors.copy(elements.of(x.up()), half(to, e, false));
      Weight gate = x.gate();
      if (gate != null) {
        tensors.copy(elements.of(gate), half(to, e, true));
      }
    }
    return to;
  }

  private Tensor stackW2(ExpertWeights weights, DType dtype, Elements elements) {
    long columns = elements.of(weights.expert(0).down()).size(1);
    Tensor to = tensors.allocate(dtype, experts, hidden, columns);
    for (int e = 0; e < experts; e++) {
      tensors.copy(elements.of(weights.expert(e).down()), to.select(0, e));
    }
    return to;
  }

  private Tensor biases13(ExpertWeights weights) {
    float[] all = new float[Math.toIntExact(experts * rows13())];
    for (int e = 0; e < experts; e++) {
      ExpertWeights.Expert x = weights.expert(e);
      int at = Math.toIntExact(e * rows13());
      put(x.upBias(), all, at);
      if (gated) {
        put(x.gateBias(), all, at + (int) intermediate);
      }
    }
    return biases(all, rows13());
  }

  private Tensor biases2(ExpertWeights weights) {
    float[] all = new float[Math.toIntExact(experts * hidden)];
    for (int e = 0; e < experts; e++) {
      put(weights.expert(e).downBias(), all, Math.toIntExact(e * hidden));
    }
    return biases(all, hidden);
  }

  /** A bias that is not there adds nothing: the module takes both or none. */
  private void put(@Nullable Tensor bias, float[] to, int at) {
    if (bias != null) {
      try (Arena arena = Arena.ofConfined()) {
        float[] values = tensors.onHost(bias, arena).toFloats();
        System.arraycopy(values, 0, to, at, values.length);
      }
    }
  }

  private Tensor biases(float[] values, long width) {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment bytes = arena.allocate(type.byteSize(values.length), 64);
      Tensor flat = Tensor.of(type, bytes, values.length);
      for (int i = 0; i < values.length; i++) {
        flat.set(values[i], i);
      }
      return tensors.upload(type, bytes, experts, width);
    }
  }

  /**
   * FP8 with one scale a tensor. The module has one scale for gate and up together and one input
   * scale for all experts, so the larger is taken, and what had the smaller is coded anew.
   */
  private final class Fp8 {
    private final MatrixScales numbers = new MatrixScales(tensors);
    private final Tensor w13;
    private final Tensor w2;
    private final List<Tensor> scales;
    private final Tensor inputScale;
    private final float input;

    Fp8(ExpertWeights weights) {
      float input = 0;
      for (int e = 0; e < experts; e++) {
        for (Weight w : first(weights.expert(e))) {
          input = Math.max(input, numbers.input(w));
        }
      }
      float[] fc1 = new float[experts];
      float[] quant = new float[experts];
      float[] fc2 = new float[experts];
      w13 = tensors.allocate(DType.F8_E4M3, experts, rows13(), hidden);
      for (int e = 0; e < experts; e++) {
        ExpertWeights.Expert x = weights.expert(e);
        float common = 0;
        for (Weight w : first(x)) {
          common = Math.max(common, numbers.only(w));
        }
        for (Weight w : first(x)) {
          copyCoded(w, common, half(w13, e, w == x.gate()));
        }
        fc1[e] = common * input;
        float down = numbers.input(x.down());
        quant[e] = 1 / down;
        fc2[e] = numbers.only(x.down()) * down;
      }
      w2 = stackW2(weights, DType.F8_E4M3, Weight::values);
      this.input = input;
      inputScale = tensors.floats(new float[] {input});
      scales =
          List.of(
              tensors.floats(fc1, experts), one(quant), tensors.floats(fc2, experts), inputScale);
    }

    /** One number where all are the same: then the module looks up no expert for each row. */
    private Tensor one(float[] forEach) {
      for (float f : forEach) {
        if (f != forEach[0]) {
          return tensors.floats(forEach, experts);
        }
      }
      return tensors.floats(new float[] {forEach[0]});
    }

    private List<Weight> first(ExpertWeights.Expert x) {
      Weight gate = x.gate();
      return gate == null ? List.of(x.up()) : List.of(x.up(), gate);
    }

    private void copyCoded(Weight w, float common, Tensor to) {
      float own = numbers.only(w);
      if (own == common) {
        tensors.copy(w.values(), to);
        return;
      }
      try (Arena arena = Arena.ofConfined()) {
        MemorySegment from = tensors.onHost(w.values(), arena).segment();
        MemorySegment coded = arena.allocate(from.byteSize(), 64);
        byte[] anew = new byte[1 << Byte.SIZE];
        for (int code = 0; code < anew.length; code++) {
          anew[code] = E4m3.of(E4m3.value((byte) code) * own / common);
        }
        for (long i = 0; i < from.byteSize(); i++) {
          byte code = from.get(ValueLayout.JAVA_BYTE, i);
          coded.set(ValueLayout.JAVA_BYTE, i, anew[Byte.toUnsignedInt(code)]);
        }
        tensors.copy(Tensor.of(DType.F8_E4M3, coded, w.values().shape()), to);
      }
    }
  }

  /** {@return {@code [E, 2I or I, H]}, packed where the scheme packs} */
  Tensor w13() {
    return w13;
  }

  /** {@return {@code [E, H, I]}, packed where the scheme packs} */
  Tensor w2() {
    return w2;
  }

  /** {@return {@code [E, 2I or I]} in the layer's dtype, or null} */
  @Nullable Tensor b13() {
    return b13;
  }

  /** {@return {@code [E, H]} in the layer's dtype, or null} */
  @Nullable Tensor b2() {
    return b2;
  }

  /** {@return the module's {@code quant_scales}, in its order; empty for none} */
  List<Tensor> scales() {
    return scales;
  }

  /** {@return the scale of e4m3 input, one F32 number; null where input is not quantised} */
  @Nullable Tensor inputScale() {
    return inputScale;
  }

  /** {@return the same number; 0 without one} */
  float inputDivisor() {
    return divisor;
  }

  CutlassScheme scheme() {
    return scheme;
  }

  int experts() {
    return experts;
  }

  @Override
  public void close() {
    tensors.close();
  }
}
