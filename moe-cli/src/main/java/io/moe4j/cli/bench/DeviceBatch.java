package io.moe4j.cli.bench;

import io.moe4j.api.tensor.Tensor;
import java.util.Arrays;
import java.util.HashSet;
import java.util.Set;
import java.util.SplittableRandom;
import java.util.stream.IntStream;

/**
 * One of the batches that rotate: ids, weights and slots on the host, for the routing and for the
 * floor.
 */
final class DeviceBatch {
  /** More than adapters that are accepted: expert * KEYS + adapter is unique. */
  private static final long KEYS = 4096;

  private static final int DRAWS = 64;

  /** Where a number of touched experts is asked for, which may be far from the mean. */
  private static final int MOST_DRAWS = 2000;

  /** Touched experts that are asked for come with one digit behind the point. */
  private static final double CLOSE = 0.05;

  /** Distinct experts of each token, {@code T * K}. */
  private final int[] ids;

  private final Tensor logits;
  private final int shift;

  /**
   * @param ids distinct experts of each token
   * @param logits that lead there
   * @param shift the adapter of token t is {@code (t + shift) % adapters}
   */
  private DeviceBatch(int[] ids, Tensor logits, int shift) {
    this.ids = ids;
    this.logits = logits;
    this.shift = shift;
  }

  /** {@return int32 {@code [T, K]}} */
  Tensor ids(int tokens) {
    return Tensor.ofInts(ids, tokens, ids.length / tokens);
  }

  /** {@return F32 {@code [T, E]}} */
  Tensor logits() {
    return logits;
  }

  /**
   * Several batches of one size. A few tokens touch now more, now fewer experts, and a forward's
   * time goes with them: of some draws the one that comes closest to the mean over all routings is
   * taken, so that times of different benchmarks can be laid side by side.
   *
   * @param shape sizes
   * @param tokens {@code T}
   * @return so many that a pass over all of them finds little of the pass before in a cache
   */
  static DeviceBatch[] rotating(BenchShape shape, int tokens) {
    return rotating(shape, tokens, Draws.DEFAULT);
  }

  /**
   * Several batches of one size, drawn as asked for.
   *
   * @param shape sizes
   * @param tokens {@code T}
   * @param draws how
   * @return the batches
   */
  static DeviceBatch[] rotating(BenchShape shape, int tokens, Draws draws) {
    int count =
        draws.batches() > 0
            ? draws.batches()
            : tokens <= 16 ? 8 : tokens <= 256 ? 4 : tokens <= 1024 ? 2 : 1;
    Double asked = draws.touched().get(tokens);
    double wanted = asked != null ? asked : expectedExperts(shape, tokens);
    // The batches' sum is a whole number: none comes closer for certain than half an expert.
    double close = asked != null ? Math.max(CLOSE, 0.5 / count) : 0.5 / count;
    long seed = 1234L + tokens + (draws.set() << 16);
    boolean apart = !draws.independent();
    DeviceBatch[] best = draw(shape, tokens, count, apart, new SplittableRandom(seed));
    double distance = Math.abs(meanExperts(best) - wanted);
    for (int i = 1; i < (asked != null ? MOST_DRAWS : DRAWS) && distance > close; i++) {
      SplittableRandom random = new SplittableRandom(seed + ((long) i << 32));
      DeviceBatch[] drawn = draw(shape, tokens, count, apart, random);
      double off = Math.abs(meanExperts(drawn) - wanted);
      if (off < distance) {
        best = drawn;
        distance = off;
      }
    }
    return best;
  }

  /** {@return distinct experts that T tokens choose, over all routings} */
  static double expectedExperts(BenchShape shape, int tokens) {
    double left = 1 - (double) shape.topK() / shape.numExperts();
    return shape.numExperts() * (1 - Math.pow(left, tokens));
  }

  /**
   * How much faster ranks can be that share the experts evenly and in order: they wait for the one
   * with most to do.
   *
   * @param batches one after the other
   * @param experts of the layer
   * @param ranks that share them
   * @param rows whether work is rows, as with many tokens, or experts with any row, whose weights
   *     are read
   * @return {@code ranks} where all have the same work
   */
  static double limit(DeviceBatch[] batches, int experts, int ranks, boolean rows) {
    long all = 0;
    long most = 0;
    for (DeviceBatch b : batches) {
      long[] of = new long[ranks];
      IntStream ids = Arrays.stream(b.ids);
      (rows ? ids : ids.distinct()).forEach(e -> of[e / (experts / ranks)]++);
      all += Arrays.stream(of).sum();
      most += Arrays.stream(of).max().orElse(0);
    }
    return (double) all / most;
  }

  /** {@return distinct experts of a batch, the mean over some} */
  static double meanExperts(DeviceBatch[] batches) {
    return Arrays.stream(batches)
        .mapToLong(b -> Arrays.stream(b.ids).distinct().count())
        .average()
        .orElse(0);
  }

  private static DeviceBatch[] draw(
      BenchShape shape, int tokens, int count, boolean distinct, SplittableRandom random) {
    int e = shape.numExperts();
    int k = shape.topK();
    DeviceBatch[] all = new DeviceBatch[count];
    int[] order = permutation(e, random);
    for (int b = 0; b < count; b++) {
      int[] ids = new int[tokens * k];
      for (int t = 0; t < tokens; t++) {
        boolean apart = distinct && tokens == 1 && k * count <= e; // no expert twice in a pass
        int[] from = apart ? order : permutation(e, random);
        System.arraycopy(from, apart ? b * k : 0, ids, t * k, k);
      }
      all[b] = new DeviceBatch(ids, logits(ids, tokens, e, k, random), b);
    }
    return all;
  }

  private static int[] permutation(int n, SplittableRandom random) {
    int[] p = new int[n];
    for (int i = 0; i < n; i++) {
      int j = random.nextInt(i + 1);
      p[i] = p[j];
      p[j] = i;
    }
    return p;
  }

  private static Tensor logits(int[] ids, int tokens, int experts, int k, SplittableRandom random) {
    float[] logits = new float[tokens * experts];
    for (int i = 0; i < logits.length; i++) {
      logits[i] = random.nextFloat();
    }
    for (int p = 0; p < ids.length; p++) {
      logits[p / k * experts + ids[p]] += 2;
    }
    return Tensor.ofFloats(logits, tokens, experts);
  }

  /** The slot of each token. */
  Tensor mapping(int tokens, int adapters) {
    int[] slots = new int[tokens];
    Arrays.setAll(slots, t -> (t + shift) % adapters);
    return Tensor.ofInts(slots, tokens);
  }

  /** Bytes that a forward must move: touched experts and adapters once, x in, the output. */
  double bytes(BenchShape shape, BenchWeights weights, int tokens, DeviceBench.Lora lora) {
    Set<Long> experts = new HashSet<>();
    Set<Long> segments = new HashSet<>();
    int k = shape.topK();
    for (int p = 0; p < ids.length; p++) {
      experts.add((long) ids[p]);
      if (lora.adapters() > 0) {
        segments.add(ids[p] * KEYS + (p / k + shift) % lora.adapters());
      }
    }
    double h = shape.hiddenSize();
    double i = shape.intermediateSize();
    return experts.size() * ((double) weights.bytes(shape) / shape.numExperts())
        + segments.size() * 6 * lora.rank() * (h + i)
        + 4.0 * tokens * h;
  }
}
