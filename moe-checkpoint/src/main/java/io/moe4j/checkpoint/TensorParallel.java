package io.moe4j.checkpoint;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.Weight;
import java.util.ArrayList;
import java.util.EnumMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.jspecify.annotations.Nullable;

/**
 * One tensor-parallel rank's share of a layer: {@code I / tpSize} of every routed expert. Rows of
 * w13 and of its B, columns of w2 and of its A; the rest of the block (router, shared expert,
 * latent projections) is whole on every rank, for its own tokens. What the ranks' experts give adds
 * up to the layer's.
 *
 * <p>Everything is a view of what is given. Quantised weights are cut between groups, blocks and
 * words; a share that would cut through one is refused with the name of the weight.
 *
 * @since 0.2.0
 */
public final class TensorParallel {
  private final int tpSize;
  private final int tpRank;

  private TensorParallel(int tpSize, int tpRank) {
    this.tpSize = tpSize;
    this.tpRank = tpRank;
  }

  /**
   * One rank's scissors.
   *
   * @param parallel whose {@code tpRank} of {@code tpSize}
   * @return what cuts for it; for a {@code tpSize} of 1 everything stays whole
   */
  public static TensorParallel of(ParallelConfig parallel) {
    return new TensorParallel(parallel.tpSize(), parallel.tpRank());
  }

  /**
   * {@return the intermediate size of this rank}
   *
   * @param intermediateSize of the whole layer
   * @throws IllegalArgumentException if it does not divide
   */
  public int share(int intermediateSize) {
    if (intermediateSize % tpSize != 0) {
      throw new IllegalArgumentException(
          "intermediateSize " + intermediateSize + " does not divide by tpSize " + tpSize);
    }
    return intermediateSize / tpSize;
  }

  /**
   * This rank's experts.
   *
   * @param whole a layer's weights, experts of one rank or of all
   * @return the same with the share of each expert
   * @throws IllegalArgumentException naming the weight that cannot be cut there
   */
  public MoeLayerWeights weights(MoeLayerWeights whole) {
    if (tpSize == 1) {
      return whole;
    }
    List<ExpertWeights.Expert> mine = new ArrayList<>();
    Tensor noBias = null;
    for (int e = 0; e < whole.experts().numExperts(); e++) {
      ExpertWeights.Expert x = whole.experts().expert(e);
      int count = share(Math.toIntExact(x.up().out()));
      long start = (long) count * tpRank;
      Weight gate = x.gate();
      ExpertWeights.Expert cut =
          ExpertWeights.Expert.of(
              gate == null ? null : gate.outputs(start, count),
              x.up().outputs(start, count),
              x.down().inputs(start, count));
      Tensor downBias = x.downBias();
      if (downBias != null && tpRank > 0) {
        // The sum of all ranks has it once.
        noBias = noBias == null ? zeros(downBias.size(0)) : noBias;
        downBias = noBias;
      }
      mine.add(
          cut.withBias(part(x.gateBias(), start, count), part(x.upBias(), start, count), downBias));
    }
    return whole.withExperts(new ExpertWeights(mine));
  }

  private static Tensor zeros(long n) {
    return Tensor.ofFloats(new float[Math.toIntExact(n)], n);
  }

  private static @Nullable Tensor part(@Nullable Tensor bias, long start, long count) {
    return bias == null ? null : bias.narrow(0, start, count);
  }

  /**
   * This rank's factors.
   *
   * @param whole an adapter's, for experts of one rank or of all
   * @return the same with the share of the routed experts' factors
   */
  public LoraAdapter adapter(LoraAdapter whole) {
    if (tpSize == 1) {
      return whole;
    }
    Map<Integer, LoraLayer> layers = new TreeMap<>();
    whole.layers().forEach((index, layer) -> layers.put(index, layer(layer)));
    return new LoraAdapter(whole.name(), layers);
  }

  private LoraLayer layer(LoraLayer whole) {
    Map<LoraTarget, LoraFactors> factors = new EnumMap<>(LoraTarget.class);
    whole.factors().forEach((target, f) -> factors.put(target, factors(target, f)));
    return new LoraLayer(factors);
  }

  private LoraFactors factors(LoraTarget target, LoraFactors f) {
    return switch (target) {
      case GATE, UP -> {
        int count = share(f.outFeatures());
        yield new LoraFactors(f.a(), f.b().narrow(1, (long) count * tpRank, count));
      }
      case DOWN -> {
        int count = share(f.inFeatures());
        yield new LoraFactors(f.a().narrow(2, (long) count * tpRank, count), f.b());
      }
      default -> f;
    };
  }

  /**
   * A config for these weights.
   *
   * @param whole of the layer
   * @param parallel the ranks
   * @return the same with this rank's share of {@code intermediateSize}
   */
  public static MoeConfig config(MoeConfig whole, ParallelConfig parallel) {
    int share = of(parallel).share(whole.intermediateSize());
    return whole.toBuilder().intermediateSize(share).parallel(parallel).build();
  }
}
