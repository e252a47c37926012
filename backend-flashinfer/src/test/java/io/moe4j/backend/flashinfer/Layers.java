package io.moe4j.backend.flashinfer;

import io.moe4j.api.config.ActivationQuant;
import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.Packing;
import io.moe4j.api.weights.Weight;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import java.util.Random;
import java.util.function.UnaryOperator;
import org.jspecify.annotations.Nullable;

/** Random layers in host memory, in each way of storing weights. */
final class Layers {
  static final QuantScheme FP8_STATIC =
      QuantScheme.builder(QuantScheme.Format.FP8)
          .perTensor()
          .activations(ActivationQuant.FP8_STATIC)
          .build();

  private Layers() {}

  static Tensor empty(DType dtype, long... shape) {
    long count = 1;
    for (long s : shape) {
      count *= s;
    }
    return Tensor.of(dtype, Arena.ofAuto().allocate(dtype.byteSize(count), 64), shape);
  }

  static Tensor random(Random random, double scale, DType dtype, long... shape) {
    Tensor t = empty(dtype, shape);
    Tensor flat = t.reshape(t.elementCount());
    for (long i = 0; i < flat.elementCount(); i++) {
      flat.set(random.nextGaussian() * scale, i);
    }
    return t;
  }

  static MoeConfig.Builder config(int h, int i, int e, int k) {
    return MoeConfig.builder(h, i, e, k)
        .inputDtype(DType.BF16)
        .weightDtype(DType.BF16)
        .maxTokens(64);
  }

  static ExpertWeights plain(MoeConfig c, long seed, GateUpLayout layout) {
    Random random = new Random(seed);
    int e = c.numLocalExperts();
    int h = c.hiddenSize();
    int i = c.intermediateSize();
    boolean gated = c.activation().isGated();
    long rows = gated ? 2L * i : i;
    DType d = c.weightDtype();
    return ExpertWeights.ofStacked(
        random(random, 1 / Math.sqrt(h), d, e, rows, h),
        random(random, 1 / Math.sqrt(i), d, e, h, i),
        c.expertBias() ? random(random, 0.3, d, e, rows) : null,
        c.expertBias() ? random(random, 0.3, d, e, h) : null,
        gated,
        layout);
  }

  static ExpertWeights mxfp4(MoeConfig c, long seed, GateUpLayout layout) {
    Random random = new Random(seed);
    int e = c.numLocalExperts();
    int h = c.hiddenSize();
    int i = c.intermediateSize();
    return ExpertWeights.ofStackedMxfp4(
        bytes(random, 0, 256, DType.F4, e, 2L * i, h),
        bytes(random, 120, 124, DType.F8_E8M0, e, 2L * i, h / 32),
        bytes(random, 0, 256, DType.F4, e, h, i),
        bytes(random, 120, 124, DType.F8_E8M0, e, h, i / 32),
        c.expertBias() ? random(random, 0.3, DType.F32, e, 2L * i) : null,
        c.expertBias() ? random(random, 0.3, DType.F32, e, h) : null,
        true,
        layout);
  }

  private static Tensor bytes(Random random, int from, int to, DType dtype, long... shape) {
    Tensor t = empty(dtype, shape);
    MemorySegment s = t.segment();
    for (long b = 0; b < s.byteSize(); b++) {
      s.set(ValueLayout.JAVA_BYTE, b, (byte) random.nextInt(from, to));
    }
    return t;
  }

  /** Normally distributed E4M3 numbers. */
  private static Tensor e4m3(Random random, long... shape) {
    Tensor codes = empty(DType.F8_E4M3, shape);
    MemorySegment s = codes.segment();
    for (long b = 0; b < s.byteSize(); b++) {
      s.set(ValueLayout.JAVA_BYTE, b, E4m3.of((float) random.nextGaussian() * 40));
    }
    return codes;
  }

  /** FP8 with scales of their own for gate, up, down and their inputs. */
  static ExpertWeights fp8(MoeConfig c, long seed) {
    Random random = new Random(seed);
    List<ExpertWeights.Expert> experts = new ArrayList<>();
    for (int e = 0; e < c.numLocalExperts(); e++) {
      long h = c.hiddenSize();
      long i = c.intermediateSize();
      experts.add(
          ExpertWeights.Expert.of(
              fp8(random, "gate", i, h, 0.01f),
              fp8(random, "up", i, h, 0.01f),
              fp8(random, "down", h, i, 0.02f)));
    }
    return new ExpertWeights(experts);
  }

  private static Weight fp8(Random random, String name, long out, long in, float inputScale) {
    float scale = 0.001f * (1 + random.nextInt(4));
    Tensor codes = empty(DType.F8_E4M3, out, in);
    MemorySegment s = codes.segment();
    for (long b = 0; b < s.byteSize(); b++) {
      float w = (float) (random.nextGaussian() / Math.sqrt(in));
      s.set(ValueLayout.JAVA_BYTE, b, E4m3.of(w / scale));
    }
    return Weight.builder(name, FP8_STATIC, out, in, codes, Packing.DENSE)
        .scales(Tensor.ofFloats(new float[] {scale}, 1, 1))
        .inputScale(Tensor.ofFloats(new float[] {inputScale}, 1))
        .build();
  }

  private static Tensor inputScale(float own, float given) {
    return Tensor.ofFloats(new float[] {Float.isNaN(given) ? own : given}, 1);
  }

  /** The same experts, but for the second one's input scale of the map of that name. */
  static ExpertWeights withInputScale(ExpertWeights w, String name, Tensor scale) {
    List<ExpertWeights.Expert> experts = new ArrayList<>();
    for (int e = 0; e < w.numExperts(); e++) {
      boolean second = e == 1;
      experts.add(
          replaced(
              w.expert(e),
              m ->
                  second && m.name().equals(name) ? parts(m, m.scales().orElseThrow(), scale) : m));
    }
    return new ExpertWeights(experts);
  }

  /** The same experts with scales of another dtype, made for each by a factor. */
  static ExpertWeights withScales(ExpertWeights w, DType type, double factor) {
    List<ExpertWeights.Expert> experts = new ArrayList<>();
    for (int e = 0; e < w.numExperts(); e++) {
      experts.add(
          replaced(
              w.expert(e),
              m -> {
                Tensor old = m.scales().orElseThrow();
                Tensor scales = empty(type, old.shape());
                for (long r = 0; r < old.size(0); r++) {
                  for (long g = 0; g < old.size(1); g++) {
                    // Not one of BF16: those have eight bits.
                    scales.set(factor == 1 ? old.get(r, g) * 1.003 : factor, r, g);
                  }
                }
                return parts(m, scales, null);
              }));
    }
    return new ExpertWeights(experts);
  }

  private static ExpertWeights.Expert replaced(ExpertWeights.Expert x, UnaryOperator<Weight> map) {
    return ExpertWeights.Expert.of(
        map.apply(Objects.requireNonNull(x.gate())), map.apply(x.up()), map.apply(x.down()));
  }

  private static Weight parts(Weight w, Tensor scales, @Nullable Tensor inputScale) {
    Weight.Builder b =
        Weight.builder(w.name(), w.scheme(), w.out(), w.in(), w.values(), w.packing())
            .scales(scales);
    w.globalScale().ifPresent(g -> b.globalScale(g, w.dividedByGlobal()));
    if (inputScale != null) {
      b.inputScale(inputScale);
    }
    return b.build();
  }

  /** Integers of four bits with a BF16 scale for 32, in a way of packing. */
  static ExpertWeights int4(MoeConfig c, long seed, Packing packing) {
    Random random = new Random(seed);
    List<ExpertWeights.Expert> experts = new ArrayList<>();
    for (int e = 0; e < c.numLocalExperts(); e++) {
      long h = c.hiddenSize();
      long i = c.intermediateSize();
      experts.add(
          ExpertWeights.Expert.of(
              int4(random, "gate", i, h, packing),
              int4(random, "up", i, h, packing),
              int4(random, "down", h, i, packing)));
    }
    return new ExpertWeights(experts);
  }

  private static Weight int4(Random random, String name, long out, long in, Packing packing) {
    QuantScheme scheme = QuantScheme.int4(32);
    Tensor words = bytes(random, 0, 256, DType.I32, packing.shape(out, in, scheme.bits()));
    Tensor scales = empty(DType.BF16, out, in / 32);
    for (long r = 0; r < out; r++) {
      for (long g = 0; g < in / 32; g++) {
        scales.set(0.02 * (0.5 + random.nextDouble()), r, g);
      }
    }
    return Weight.builder(name, scheme, out, in, words, packing).scales(scales).build();
  }

  /**
   * Experts whose weights have a scale for each block or group, as a scheme says: random codes,
   * scales of one magnitude, for NVFP4 global and input scales that differ between maps.
   */
  static ExpertWeights scaled(MoeConfig c, QuantScheme scheme, long seed) {
    return scaled(c, scheme, seed, Float.NaN);
  }

  /**
   * The same experts, but for the input scales of NVFP4's gates and ups.
   *
   * @param input of them all; NaN = their own, of which some have 0.006 and none more
   */
  static ExpertWeights scaled(MoeConfig c, QuantScheme scheme, long seed, float input) {
    Random random = new Random(seed);
    List<ExpertWeights.Expert> experts = new ArrayList<>();
    for (int e = 0; e < c.numLocalExperts(); e++) {
      long h = c.hiddenSize();
      long i = c.intermediateSize();
      experts.add(
          ExpertWeights.Expert.of(
              scaled(random, "gate", scheme, i, h, input),
              scaled(random, "up", scheme, i, h, input),
              scaled(random, "down", scheme, h, i, Float.NaN)));
    }
    return new ExpertWeights(experts);
  }

  private static Weight scaled(
      Random random, String name, QuantScheme scheme, long out, long in, float input) {
    boolean four = scheme.format() == QuantScheme.Format.FP4;
    Tensor codes = four ? bytes(random, 0, 256, DType.F4, out, in) : e4m3(random, out, in);
    long rows = scheme.scaleRowCount(out);
    long columns = scheme.scaleColumnCount(in);
    Weight.Builder weight = Weight.builder(name, scheme, out, in, codes, Packing.DENSE);
    return switch (scheme.scaleFormat()) {
      case E8M0 ->
          weight
              .scales(
                  bytes(random, four ? 121 : 116, four ? 124 : 119, DType.F8_E8M0, rows, columns))
              .build();
      case E4M3 ->
          weight
              .scales(bytes(random, 0x30, 0x48, DType.F8_E4M3, rows, columns))
              .globalScale(Tensor.ofFloats(new float[] {0.02f * (1 + random.nextInt(3))}, 1), false)
              .inputScale(inputScale(0.002f * (1 + random.nextInt(3)), input))
              .build();
      default -> weight.scales(random(random, 4e-4, DType.F32, rows, columns)).build();
    };
  }
}
