package io.moe4j.tck;

import static org.junit.jupiter.api.Assertions.assertThrows;

import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.RmsNorm;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.RouterWeights;
import io.moe4j.reference.ReferenceMoe;
import java.util.List;
import java.util.Optional;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * Rule 6.2: router, latent projections, shared expert, norms, zero experts. A part of {@link
 * BlockOpsConformanceTest}, which providers extend.
 */
abstract class BlockOutputTests extends BlockRoutingTests {
  BlockOutputTests() {}

  // ---- 6.2: router, latent projections, shared expert

  /**
   * Logits in f32 from hidden states and weights of any dtype, with and without bias.
   *
   * @param c the case
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.BlockCases#blocks")
  public final void required_MOE_6_2_routerLogits(Object c) {
    var block = (BlockCases.Block) c;
    for (boolean bias : new boolean[] {false, true}) {
      for (int tokens : new int[] {0, 1, 19}) {
        Data data = new Data(tokens);
        MoeLayerWeights weights = block.weights(data, bias);
        Tensor hidden = hidden(block.config(), data, tokens);
        try (BlockOps ops = prepare(block.config(), weights);
            Bench bench = new Bench(device())) {
          Tensor logits = bench.output(DType.F32, tokens, block.config().numExperts());
          ops.routerLogits(
              bench.input(hidden),
              logits,
              bench.workspace(ops.workspaceBytes(tokens)),
              bench.stream);
          bench.stream.synchronize();
          double[][] truth = new double[tokens][];
          for (int t = 0; t < tokens; t++) {
            truth[t] =
                ReferenceMoe.routerLogits(
                    block.config().routing(),
                    java.util.Objects.requireNonNull(weights.router()),
                    hidden.select(0, t).toDoubles());
          }
          double tolerance = Tolerance.linear(block.config().hiddenSize());
          Compare.rows("MOE-6.2", "router logits, " + block, truth, bench.rows(logits), tolerance);
          bench.requireNothingElseWritten();
        }
      }
    }
  }

  /** A layer whose logits the caller brings. */
  @Test
  public final void required_MOE_6_2_routerLogitsWithoutRouterIsAnError() {
    MoeConfig config = MoeConfig.builder(4, 4, 2, 1).weightDtype(DType.F32).build();
    MoeLayerWeights weights =
        new MoeLayerWeights(Layout.STACKED.random(config, new Data(1)), null, null, null);
    try (BlockOps ops = prepare(config, weights);
        Bench bench = new Bench(device())) {
      Tensor hidden = bench.input(Data.empty(DType.F32, 1, 4));
      Tensor logits = bench.output(DType.F32, 1, 2);
      var workspace = bench.workspace(ops.workspaceBytes(1));
      assertThrows(
          IllegalStateException.class,
          () -> ops.routerLogits(hidden, logits, workspace, bench.stream));
    }
  }

  /**
   * Shared expert, gate, latent output, LoRA on all of them, each output dtype.
   *
   * @param c the case
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.BlockCases#blocks")
  public final void required_MOE_6_2_output(Object c) {
    var block = (BlockCases.Block) c;
    for (DType output : List.of(DType.F32, DType.BF16, DType.F16)) {
      for (int tokens : new int[] {0, 1, 23}) {
        for (boolean lora : new boolean[] {false, true}) {
          verifyFinish(block, output, tokens, lora);
        }
      }
    }
  }

  private void verifyFinish(BlockCases.Block block, DType output, int tokens, boolean lora) {
    MoeConfig config = block.config();
    Data data = new Data(tokens + 7);
    MoeLayerWeights weights = block.weights(data, false);
    Tensor hidden = hidden(config, data, tokens);
    Tensor routed = data.normal(DType.F32, 1, tokens, config.expertHiddenSize());
    List<Optional<LoraLayer>> slots = denseAdapters(config, data);
    int[] mapping = mapping(tokens);
    try (BlockOps ops = prepare(config, weights);
        Bench bench = new Bench(device())) {
      Tensor result = bench.output(output, tokens, config.hiddenSize());
      ops.output(
          bench.input(hidden),
          bench.input(routed),
          lora ? context(bench, slots, mapping) : null,
          result,
          bench.workspace(ops.workspaceBytes(tokens)),
          bench.stream);
      bench.stream.synchronize();
      double[][] truth = outputOf(config, weights, hidden, routed, slots, lora ? mapping : null);
      Compare.rows(
          "MOE-6.2",
          "output" + (lora ? " with LoRA, " : ", ") + block + ", output " + output,
          truth,
          bench.rows(result),
          tolerance(config, output));
      bench.requireNothingElseWritten();
    }
  }

  /**
   * The experts' sum and the block's output in one place.
   *
   * @param c the case
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.BlockCases#blocks")
  public final void required_MOE_6_2_outputMayBeRouted(Object c) {
    MoeConfig config = ((BlockCases.Block) c).config();
    if (config.latentSize() > 0) {
      return; // routed and output differ in shape
    }
    int tokens = 17;
    Data data = new Data(3);
    MoeLayerWeights weights = ((BlockCases.Block) c).weights(data, false);
    Tensor hidden = hidden(config, data, tokens);
    Tensor routed = data.normal(DType.F32, 1, tokens, config.hiddenSize());
    try (BlockOps ops = prepare(config, weights);
        Bench bench = new Bench(device())) {
      Tensor both = bench.inout(routed);
      ops.output(
          bench.input(hidden),
          both,
          null,
          both,
          bench.workspace(ops.workspaceBytes(tokens)),
          bench.stream);
      bench.stream.synchronize();
      double[][] truth = outputOf(config, weights, hidden, routed, List.of(), null);
      Compare.rows(
          "MOE-6.2",
          "output in place, " + c,
          truth,
          bench.rows(both),
          tolerance(config, DType.F32));
    }
  }

  /**
   * What latent experts read.
   *
   * @param c the case
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.BlockCases#blocks")
  public final void required_MOE_6_2_latentIn(Object c) {
    var block = (BlockCases.Block) c;
    MoeConfig config = block.config();
    for (int tokens : config.latentSize() == 0 ? new int[0] : new int[] {0, 1, 21}) {
      Data data = new Data(tokens);
      MoeLayerWeights weights = block.weights(data, false);
      Tensor hidden = hidden(config, data, tokens);
      List<Optional<LoraLayer>> slots = denseAdapters(config, data);
      int[] mapping = mapping(tokens);
      try (BlockOps ops = prepare(config, weights);
          Bench bench = new Bench(device())) {
        Tensor latent = bench.output(DType.F32, tokens, config.latentSize());
        ops.latentIn(
            bench.input(hidden),
            context(bench, slots, mapping),
            latent,
            bench.workspace(ops.workspaceBytes(tokens)),
            bench.stream);
        bench.stream.synchronize();
        double[][] truth = new double[tokens][];
        for (int t = 0; t < tokens; t++) {
          truth[t] =
              ReferenceMoe.latentIn(
                  java.util.Objects.requireNonNull(weights.latent()),
                  hidden.select(0, t).toDoubles(),
                  adapter(slots, mapping[t]));
        }
        Compare.rows(
            "MOE-6.2",
            "latentIn, " + block,
            truth,
            bench.rows(latent),
            tolerance(config, DType.F32));
        bench.requireNothingElseWritten();
      }
    }
  }

  /**
   * What experts and adapters on the router read, where the block normalises it.
   *
   * @param dtypes element types of the tensors
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.Grid#dtypePairs")
  public final void required_MOE_6_2_norms(Object dtypes) {
    RmsNorm norm = new RmsNorm(0.3f); // large enough to be missed
    MoeConfig.Builder layer = Grid.layer((Grid.Dtypes) dtypes, 33, 8, 5, 2);
    verifyNorm(layer.inputNorm(norm).build(), norm, false);
    verifyNorm(
        layer
            .inputNorm(null)
            .routing(RoutingConfig.SOFTMAX.toBuilder().inputNorm(norm).build())
            .lora(new LoraConfig(2, 8).withRouter())
            .build(),
        norm,
        true);
  }

  private void verifyNorm(MoeConfig config, RmsNorm norm, boolean router) {
    int h = config.hiddenSize();
    for (int tokens : new int[] {0, 1, 19}) {
      Data data = new Data(tokens);
      Tensor factors = data.normal(config.weightDtype(), 1, h);
      MoeLayerWeights weights =
          new MoeLayerWeights(
              Layout.STACKED.random(config, data),
              new RouterWeights(
                  data.normal(config.weightDtype(), 1, config.numExperts(), h),
                  null,
                  null,
                  router ? factors : null,
                  null,
                  null),
              null,
              null);
      Tensor hidden = hidden(config, data, tokens);
      try (BlockOps ops = prepare(config, router ? weights : weights.withInputNorm(factors));
          Bench bench = new Bench(device())) {
        Tensor normed = bench.output(DType.F32, tokens, h);
        var workspace = bench.workspace(ops.workspaceBytes(tokens));
        if (router) {
          ops.routerNorm(bench.input(hidden), normed, workspace, bench.stream);
        } else {
          ops.inputNorm(bench.input(hidden), normed, workspace, bench.stream);
        }
        bench.stream.synchronize();
        double[][] truth = new double[tokens][];
        for (int t = 0; t < tokens; t++) {
          truth[t] = ReferenceMoe.normed(norm, factors, hidden.select(0, t).toDoubles());
        }
        Compare.rows(
            "MOE-6.2",
            (router ? "routerNorm of " : "inputNorm of ") + config,
            truth,
            bench.rows(normed),
            Tolerance.linear(h));
        bench.requireNothingElseWritten();
      }
    }
  }

  /**
   * Experts that give a token itself.
   *
   * @param dtypes element types of the tensors
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.Grid#dtypePairs")
  public final void required_MOE_6_2_zeroExperts(Object dtypes) {
    MoeConfig config = Grid.layer((Grid.Dtypes) dtypes, 33, 8, 5, 3).zeroExperts(2).build();
    for (int tokens : new int[] {0, 1, 19}) {
      Data data = new Data(tokens);
      MoeLayerWeights weights =
          new MoeLayerWeights(Layout.STACKED.random(config, data), null, null, null);
      Tensor hidden = hidden(config, data, tokens);
      Tensor ids = Tensor.ofInts(new int[tokens * 3], tokens, 3);
      Tensor topkWeights = data.normal(DType.F32, 1, tokens, 3);
      Tensor routed = data.normal(DType.F32, 1, tokens, 33);
      double[][] zero = new double[tokens][1];
      double[][] left = new double[tokens][3];
      double[][] truth = new double[tokens][];
      for (int t = 0; t < tokens; t++) {
        truth[t] = routed.select(0, t).toDoubles();
        for (int k = 0; k < 3; k++) {
          int id = (t * 3 + 2 * k) % 7; // 5 and 6 are zero experts
          ids.set(id, t, k);
          left[t][k] = id < 5 ? id : -1;
          zero[t][0] += id < 5 ? 0 : topkWeights.get(t, k);
        }
        for (int c = 0; c < 33; c++) {
          truth[t][c] += zero[t][0] * hidden.get(t, c);
        }
      }
      try (BlockOps ops = prepare(config, weights);
          Bench bench = new Bench(device())) {
        Tensor expertIds = bench.output(DType.I32, tokens, 3);
        Tensor zeroWeights = bench.output(DType.F32, tokens);
        Tensor sum = bench.inout(routed);
        ops.splitZeroExperts(
            bench.input(ids), bench.input(topkWeights), expertIds, zeroWeights, bench.stream);
        ops.addZeroExperts(bench.input(hidden), zeroWeights, sum, bench.stream);
        bench.stream.synchronize();
        Compare.rows("MOE-6.2", "ids without zero experts", left, bench.rows(expertIds), 0);
        Compare.rows(
            "MOE-6.2",
            "weights of zero experts",
            zero,
            rowsOf(bench.read(zeroWeights).toDoubles()),
            Tolerance.linear(3));
        Compare.rows(
            "MOE-6.2", "sum with zero experts", truth, bench.rows(sum), Tolerance.linear(3));
        bench.requireNothingElseWritten();
      }
    }
  }

  private static double[][] rowsOf(double[] column) {
    return java.util.Arrays.stream(column).mapToObj(v -> new double[] {v}).toArray(double[][]::new);
  }
}
