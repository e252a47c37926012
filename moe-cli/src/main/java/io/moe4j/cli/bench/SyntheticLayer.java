package io.moe4j.cli.bench;

import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.RouterWeights;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
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
  private final DType dtype;
  private final Arena arena;
  private final SplittableRandom random = new SplittableRandom(SEED);
  private final MemorySegment pattern;

  SyntheticLayer(BenchShape shape, DType dtype, Arena arena) {
    this.shape = shape;
    this.dtype = dtype;
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

  MoeLayerWeights weights() {
    long h = shape.hiddenSize();
    long i = shape.intermediateSize();
    List<ExpertWeights.Expert> experts = new ArrayList<>();
    for (int e = 0; e < shape.numExperts(); e++) {
      experts.add(ExpertWeights.Expert.plain(repeated(i, h), repeated(i, h), repeated(h, i)));
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

  Tensor hidden(int tokens) {
    return normal(DType.F32, 1, tokens, shape.hiddenSize());
  }

  Tensor zeros(DType type, long... sizes) {
    return Tensor.of(type, new HostMemory(memory(type, sizes)), sizes);
  }
}
