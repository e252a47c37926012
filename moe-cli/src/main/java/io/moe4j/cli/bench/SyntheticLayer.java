package io.moe4j.cli.bench;

import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.QuantScheme.Format;
import io.moe4j.api.config.QuantScheme.ScaleFormat;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.Packing;
import io.moe4j.api.weights.RouterWeights;
import io.moe4j.api.weights.Weight;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;

/** Random weights, adapters and hidden states of a shape, in memory of one arena. */
final class SyntheticLayer {
  private static final long SEED = 20261121;
  private static final int PATTERN_ELEMENTS = 1 << 20;
  private static final double SPREAD = 0.02;

  private final BenchShape shape;
  private final BenchWeights stored;
  private final DType dtype;
  private final Arena arena;
  private final SplittableRandom random = new SplittableRandom(SEED);
  private final MemorySegment pattern;

  SyntheticLayer(BenchShape shape, BenchWeights stored, Arena arena) {
    this.shape = shape;
    this.stored = stored;
    this.dtype = stored.dtype();
    this.arena = arena;
    Tensor numbers = normal(dtype, SPREAD, PATTERN_ELEMENTS);
    this.pattern = numbers.segment();
  }

  private Tensor normal(DType type, double spread, long... sizes) {
    Tensor t = Tensor.of(type, new HostMemory(memory(type, sizes)), sizes);
    long count = t.elementCount();
    Tensor flat = t.reshape(count);
    for (long i = 0; i < count; i++) {
      flat.set(random.nextGaussian(0, spread), i);
    }
    return t;
  }

  private MemorySegment memory(DType type, long... sizes) {
    long count = 1;
    for (long s : sizes) {
      count *= s;
    }
    return arena.allocate(type.byteSize(count), 64);
  }

  /** A tensor of repeated random numbers, each at another place of the pattern: quick to fill. */
  private Tensor repeated(long... sizes) {
    MemorySegment to = memory(dtype, sizes);
    long bytes = to.byteSize();
    long period = pattern.byteSize();
    long step = dtype.bits() / 8;
    long from = random.nextLong(period / step) * step;
    for (long at = 0; at < bytes; ) {
      long n = Math.min(period - from, bytes - at);
      MemorySegment.copy(pattern, from, to, at, n);
      at += n;
      from = 0;
    }
    return Tensor.of(dtype, new HostMemory(to), sizes);
  }

  private Weight weight(long out, long in) {
    QuantScheme scheme = stored.scheme();
    if (scheme.isNone()) {
      return Weight.plain(repeated(out, in));
    }
    boolean words = scheme.format() == Format.INT4;
    Packing packing = words ? Packing.WORDS_ALONG_IN : Packing.DENSE;
    DType codes =
        switch (scheme.format()) {
          case INT4 -> DType.I32;
          case INT8 -> DType.I8;
          case FP4 -> DType.F4;
          default -> DType.F8_E4M3;
        };
    long groups = scheme.scaleColumnCount(in);
    Weight.Builder b =
        Weight.builder(
                "random",
                scheme,
                out,
                in,
                bytes(codes, codes == DType.F8_E4M3 ? 0xb7 : 0xff, packing.shape(out, in, scheme.bits())),
                packing)
            .scales(scales(scheme.scaleRowCount(out), groups));
    if (scheme.scaleFormat() == ScaleFormat.E4M3) {
      b.globalScale(Tensor.ofFloats(new float[] {(float) SPREAD / 8}, 1), false);
    }
    if (!scheme.symmetric()) {
      Packing zeros = Packing.WORDS_ALONG_OUT;
      b.zeroPoints(bytes(DType.I32, 0xff, zeros.shape(out, groups, scheme.bits())), zeros, 0);
    }
    return b.build();
  }

  /** Random bytes of which only some bits may be set, so that every code is a number. */
  private Tensor bytes(DType type, int mask, long... sizes) {
    MemorySegment to = memory(type, sizes);
    long bits = mask * 0x0101010101010101L;
    for (long at = 0; at + Long.BYTES <= to.byteSize(); at += Long.BYTES) {
      to.set(ValueLayout.JAVA_LONG, at, random.nextLong() & bits);
    }
    return Tensor.of(type, new HostMemory(to), sizes);
  }

  private Tensor scales(long rows, long groups) {
    DType type = stored.scales();
    Tensor t = Tensor.of(type, new HostMemory(memory(type, rows, groups)), rows, groups);
    if (type.bits() == 8) { // a power of two near the spread, or 1
      t.segment().fill((byte) (type == DType.F8_E8M0 ? 120 : 0x38));
      return t;
    }
    for (long i = 0; i < rows * groups; i++) {
      t.set(SPREAD / 8 * (0.5 + random.nextDouble()), i / groups, i % groups);
    }
    return t;
  }

  MoeLayerWeights weights() {
    long h = shape.hiddenSize();
    long i = shape.intermediateSize();
    List<ExpertWeights.Expert> experts = new ArrayList<>();
    for (int e = 0; e < shape.numExperts(); e++) {
      experts.add(ExpertWeights.Expert.of(weight(i, h), weight(i, h), weight(h, i)));
    }
    Tensor router = normal(dtype, 1 / Math.sqrt(shape.hiddenSize()), shape.numExperts(), h);
    return new MoeLayerWeights(
        new ExpertWeights(experts), new RouterWeights(router, null, null), null, null);
  }

  /** An adapter on gate, up and down of every expert; gate and up share A, as PEFT writes them. */
  LoraAdapter adapter(String name, int rank) {
    long e = shape.numExperts();
    long h = shape.hiddenSize();
    long i = shape.intermediateSize();
    Tensor a13 = repeated(e, rank, h);
    return new LoraAdapter(
        name,
        Map.of(
            0,
            new LoraLayer(
                Map.of(
                    LoraTarget.GATE, new LoraFactors(a13, repeated(e, rank, i).transpose(1, 2)),
                    LoraTarget.UP, new LoraFactors(a13, repeated(e, rank, i).transpose(1, 2)),
                    LoraTarget.DOWN,
                        new LoraFactors(
                            repeated(e, rank, i), repeated(e, rank, h).transpose(1, 2))))));
  }

  /** Hidden states of the weights' dtype, as a model of that dtype has them. */
  Tensor hidden(int tokens) {
    return normal(dtype, 1, tokens, shape.hiddenSize());
  }

  Tensor zeros(DType type, long... sizes) {
    return Tensor.of(type, new HostMemory(memory(type, sizes)), sizes);
  }
}
