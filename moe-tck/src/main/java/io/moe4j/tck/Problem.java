package io.moe4j.tck;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.reference.ReferenceMoe;
import io.moe4j.reference.ReferenceRouting;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.function.IntBinaryOperator;
import org.jspecify.annotations.Nullable;

/**
 * A layer, a batch, and the truth about it; everything in host memory. The batch can be handed over
 * in either activation format.
 */
final class Problem {
  final MoeConfig config;
  final ExpertWeights weights;
  final int tokens;

  /** {@code [T, E]}; what ids and weights come from, until a test changes those. */
  Tensor logits;

  /** F32 {@code [E]}, or null where the routing has none. */
  final @Nullable Tensor correctionBias;

  /** {@code [T, H]}. */
  final Tensor hidden;

  /** Global ids {@code [T, K]}. */
  final Tensor ids;

  final Tensor topkWeights;
  DType outputDtype;

  /** Slot by slot; empty list = no LoRA context at all. */
  List<Optional<LoraLayer>> slots = List.of();

  /** {@code [T]}. */
  int[] mapping;

  /** Whether {@link #ids} or {@link #topkWeights} were changed by hand. */
  boolean handRouted;

  /** How many bytes inputs and output are off the 64-byte alignment. */
  int shift;

  Problem(MoeConfig config, ExpertWeights weights, int tokens, long seed) {
    this(config, weights, tokens, seed, (t, e) -> 0);
  }

  /**
   * @param preference added to the logits: tokens and experts that are to meet get more
   */
  Problem(
      MoeConfig config,
      ExpertWeights weights,
      int tokens,
      long seed,
      IntBinaryOperator preference) {
    this.config = config;
    this.weights = weights;
    this.tokens = tokens;
    this.outputDtype = DType.F32;
    this.mapping = new int[tokens];
    java.util.Arrays.fill(mapping, -1);
    Data data = new Data(seed);
    // clamps must clamp and SiLU must bend: wide inputs where the limit is wide
    double deviation = Float.isFinite(config.activation().limit()) ? 3 : 1;
    this.hidden = data.normal(hiddenDtype(config), deviation, tokens, config.expertHiddenSize());
    this.logits = Data.empty(DType.F32, tokens, config.numExperts());
    this.ids = Data.empty(DType.I32, tokens, config.topK());
    this.topkWeights = Data.empty(DType.F32, tokens, config.topK());
    this.correctionBias =
        config.routing().correctionBias()
            ? new Data(seed + 7).normal(DType.F32, 0.3, config.numExperts())
            : null;
    for (int t = 0; t < tokens; t++) {
      for (int e = 0; e < config.numExperts(); e++) {
        logits.set(data.gaussian() + preference.applyAsInt(t, e), t, e);
      }
      route(t);
    }
  }

  /** Latent projections are f32 in front of the experts, whatever the block's dtype. */
  static DType hiddenDtype(MoeConfig config) {
    return config.latentSize() > 0 ? DType.F32 : config.inputDtype();
  }

  private void route(int t) {
    int[] chosen = new int[config.topK()];
    double[] w = new double[config.topK()];
    double[] bias = correctionBias == null ? null : correctionBias.toDoubles();
    ReferenceRouting.route(config.routing(), logits.select(0, t).toDoubles(), bias, chosen, w);
    for (int k = 0; k < chosen.length; k++) {
      ids.set(chosen[k], t, k);
      topkWeights.set(w[k], t, k);
    }
  }

  /** Brings other logits, rounded to a dtype, and routes by them. */
  Problem logits(DType dtype, double[][] values) {
    logits = Data.empty(dtype, tokens, config.numExperts());
    for (int t = 0; t < tokens; t++) {
      for (int e = 0; e < config.numExperts(); e++) {
        logits.set(values[t][e], t, e);
      }
      route(t);
    }
    return this;
  }

  /** Gives a pair another id. */
  Problem id(int token, int k, int id) {
    ids.set(id, token, k);
    handRouted = true;
    return this;
  }

  /** Gives a pair another weight. */
  Problem weight(int token, int k, double weight) {
    topkWeights.set(weight, token, k);
    handRouted = true;
    return this;
  }

  /** Loads adapters and assigns tokens to them, token {@code t} gets {@code slotOf[t % length]}. */
  Problem adapters(List<Optional<LoraLayer>> loaded, int... slotOf) {
    slots = loaded;
    for (int t = 0; t < tokens; t++) {
      mapping[t] = slotOf[t % slotOf.length];
    }
    return this;
  }

  /** {@return a batch of one of these tokens} */
  Problem only(int token) {
    Problem p = new Problem(config, weights, 1, 0);
    for (Tensor[] pair :
        new Tensor[][] {
          {hidden, p.hidden}, {logits, p.logits}, {ids, p.ids}, {topkWeights, p.topkWeights}
        }) {
      for (long i = 0; i < pair[0].size(1); i++) {
        pair[1].set(pair[0].get(token, i), 0, i);
      }
    }
    p.mapping[0] = mapping[token];
    p.slots = slots;
    return p.output(outputDtype);
  }

  Problem output(DType dtype) {
    outputDtype = dtype;
    return this;
  }

  Problem shifted(int bytes) {
    shift = bytes;
    return this;
  }

  @Nullable Tensor expertMap() {
    Optional<ExpertMap> map = config.expertMap();
    return map.map(m -> Tensor.ofInts(m.toArray(), m.numGlobalExperts())).orElse(null);
  }

  ExpertRouting routing() {
    return new ExpertRouting(ids, topkWeights, expertMap());
  }

  double tolerance() {
    long longest = Math.max(config.expertHiddenSize(), config.intermediateSize());
    for (Optional<LoraLayer> slot : slots) {
      longest = Math.max(longest, slot.map(LoraLayer::maxRank).orElse(0));
    }
    return Tolerance.block(config.inputDtype(), outputDtype, longest);
  }

  private @Nullable LoraLayer adapter(int slot) {
    return slot < 0 || slot >= slots.size() ? null : slots.get(slot).orElse(null);
  }

  /** {@return the weighted sum of each token, {@code [T][H]}} */
  double[][] truth() {
    double[][] rows = new double[tokens][];
    for (int t = 0; t < tokens; t++) {
      rows[t] =
          ReferenceMoe.experts(
              config, weights, routing(), t, hidden.select(0, t).toDoubles(), adapter(mapping[t]));
    }
    return rows;
  }

  /** The batch as BATCHED experts get it. */
  final class Batched {
    final Tensor hidden;
    final Tensor expertNumTokens;
    final Tensor mapping;

    Batched() {
      int experts = weights.numExperts();
      List<List<int[]>> pairs = new ArrayList<>();
      for (int e = 0; e < experts; e++) {
        pairs.add(new ArrayList<>());
      }
      for (int t = 0; t < tokens; t++) {
        for (int k = 0; k < config.topK(); k++) {
          int e = routing().localExpert(t, k, experts);
          if (e >= 0) {
            pairs.get(e).add(new int[] {t, k});
          }
        }
      }
      // one row more than needed, so that every expert has rows past its count
      int rows = 1 + pairs.stream().mapToInt(List::size).max().orElse(0);
      Tensor source = Problem.this.hidden;
      hidden = Data.empty(source.dtype(), experts, rows, source.size(1));
      expertNumTokens = Data.empty(DType.I32, experts);
      mapping = Data.empty(DType.I32, experts, rows);
      for (int e = 0; e < experts; e++) {
        expertNumTokens.set(pairs.get(e).size(), e);
        for (int j = 0; j < rows; j++) {
          boolean used = j < pairs.get(e).size();
          int t = used ? pairs.get(e).get(j)[0] : 0;
          int k = used ? pairs.get(e).get(j)[1] : 0;
          double factor = used && config.routerWeightOnInput() ? topkWeights.get(t, k) : 1;
          for (int h = 0; h < source.size(1); h++) {
            hidden.set(used ? factor * source.get(t, h) : Double.NaN, e, j, h);
          }
          mapping.set(used ? Problem.this.mapping[t] : Integer.MAX_VALUE, e, j);
        }
      }
    }

    /** {@return the unweighted result of each row in use, in order of experts} */
    double[][] truth() {
      List<double[]> rows = new ArrayList<>();
      forEachRow((e, j) ->
          rows.add(
              ReferenceMoe.expert(
                  config.activation(),
                  weights.expert(e),
                  hidden.select(0, e).select(0, j).toDoubles(),
                  adapter((int) mapping.get(e, j)),
                  e)));
      return rows.toArray(new double[0][]);
    }

    /** {@return the rows in use of what the experts wrote} */
    double[][] rows(Tensor output) {
      List<double[]> rows = new ArrayList<>();
      forEachRow((e, j) -> rows.add(output.select(0, e).select(0, j).toDoubles()));
      return rows.toArray(new double[0][]);
    }

    private interface RowVisitor {
      void visit(int expert, int row);
    }

    private void forEachRow(RowVisitor visitor) {
      for (int e = 0; e < weights.numExperts(); e++) {
        for (int j = 0; j < expertNumTokens.get(e); j++) {
          visitor.visit(e, j);
        }
      }
    }
  }

  /** {@return rows of the truth in the order in which {@link Harness} returns a backend's} */
  double[][] truth(ActivationFormat format) {
    return format == ActivationFormat.STANDARD ? truth() : new Batched().truth();
  }

  @Override
  public String toString() {
    return "T="
        + tokens
        + " "
        + describe(config)
        + ", output "
        + outputDtype
        + (slots.isEmpty() ? "" : ", " + slots.size() + " LoRA slots");
  }

  /** {@return the parts of a config that differ between cases} */
  static String describe(MoeConfig c) {
    return "H="
        + c.expertHiddenSize()
        + " I="
        + c.intermediateSize()
        + " E="
        + c.numExperts()
        + " K="
        + c.topK()
        + " "
        + c.activation().kind()
        + (Float.isFinite(c.activation().limit()) ? " limit " + c.activation().limit() : "")
        + " hidden "
        + c.inputDtype()
        + " weights "
        + c.weightDtype()
        + (c.isQuantized() ? " " + c.quantSchemes() : "")
        + (c.expertBias() ? " bias" : "")
        + (c.routerWeightOnInput() ? " weight-on-input" : "")
        + (c.expertMap().isPresent() ? " " + c.expertMap().get() : "")
        + (c.batchInvariant() ? " batch-invariant" : "");
  }
}
