package io.moe4j.tck;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.config.RmsNorm;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.config.SharedExpertConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.spi.BlockOpsProvider;
import io.moe4j.api.spi.Support;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.RouterWeights;
import io.moe4j.reference.ReferenceMoe;
import io.moe4j.reference.ReferenceRouting;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.OptionalLong;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestInstance;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * What the {@link BlockOps} of a device have to hold, compared with the float64 reference: routing,
 * router, shared expert, latent projections, dispatch and combine. Extend this class, say which
 * providers; see {@link ExpertsConformanceTest} for outcomes, tolerances and guard bands. On a
 * machine without such a device everything is skipped.
 */
@TestInstance(TestInstance.Lifecycle.PER_CLASS)
public abstract class BlockOpsConformanceTest {
  private final Skipped skipped = new Skipped();
  private @Nullable Device openDevice;

  /** For subclasses. */
  protected BlockOpsConformanceTest() {}

  /** {@return who makes the operations under test} */
  protected abstract BlockOpsProvider blockOps();

  /**
   * {@return an open device for the operations; by default the preferred one that a {@link
   * io.moe4j.api.device.DeviceProvider} on the class path opens. Closed after the tests}
   */
  protected Device openDevice() {
    return Devices.open(blockOps().deviceType());
  }

  /**
   * {@return what adds deltas where the operations do not fuse them; by default one that computes
   * on the host}
   *
   * @param device the open device
   */
  protected PunicaWrapper punicaWrapper(Device device) {
    return new KitPunicaWrapper(device);
  }

  /**
   * {@return device memory in use, for MOE-6.4. The default, empty, counts what is taken through
   * {@link Device#allocate}, which suits operations that accept any {@code Device} object of their
   * type; others know it from their driver}
   */
  protected OptionalLong deviceBytesInUse() {
    return OptionalLong.empty();
  }

  /** Opens the device. */
  @BeforeAll
  public final void openKit() {
    openDevice = openDevice();
  }

  /** Closes the device. */
  @AfterAll
  public final void closeKit() {
    if (openDevice != null) {
      skipped.print("the block on " + blockOps().deviceType());
      openDevice.close();
    }
  }

  private BlockOps prepare(MoeConfig config, MoeLayerWeights weights) {
    Support support = blockOps().isSupportedConfig(config);
    if (!support.isSupported()) {
      skipped.add(support.reasons().getFirst().code().toString(), support.toString());
      Assumptions.abort("unsupported: " + support);
    }
    return blockOps().prepare(config, weights, device());
  }

  private Device device() {
    if (openDevice == null) {
      throw new IllegalStateException("the device is not open");
    }
    return openDevice;
  }

  // ---- 1.4: facts

  /**
   * {@code facts()} before and after a call, none with a name that experts use.
   *
   * @param c the case
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.BlockCases#blocks")
  public final void required_MOE_1_4_factsStayTheSame(Object c) {
    var block = (BlockCases.Block) c;
    MoeConfig config = block.config();
    int tokens = 5;
    Data data = new Data(tokens);
    MoeLayerWeights weights = block.weights(data, false);
    try (BlockOps ops = prepare(config, weights);
        Bench bench = new Bench(device())) {
      Tensor in = bench.input(hidden(config, data, tokens));
      Tensor routed = bench.input(data.normal(DType.F32, 1, tokens, config.expertHiddenSize()));
      Tensor out = bench.output(DType.F32, tokens, config.hiddenSize());
      var workspace = bench.workspace(ops.workspaceBytes(tokens));
      Facts.requireNoneOfExperts(
          Facts.requireSame(
              ops::facts,
              () -> {
                ops.output(in, routed, null, out, workspace, bench.stream);
                bench.stream.synchronize();
              }));
    }
  }

  // ---- 6.1: routing

  /**
   * Scores, renormalisation, bias, scaling, groups. Ids exact and in order.
   *
   * @param c the case
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.BlockCases#routes")
  public final void required_MOE_6_1_routing(Object c) {
    var route = (BlockCases.Route) c;
    Data data = new Data(route.hashCode());
    double[] bias = route.correctionBias(data);
    double[][] logits = new double[route.tokens()][];
    for (int t = 0; t < logits.length; t++) {
      logits[t] = route.logits(data, bias);
    }
    verifyRouting(route.config(), bias, logits, null);
  }

  /** Equal logits: the smaller id first. */
  @Test
  public final void required_MOE_6_1_tiesGoToTheSmallerId() {
    double[][] logits = {
      {1, 1, 1, 1, 1, 1, 1, 1},
      {0, 2, 1, 2, 0, 2, 1, 2},
      {-3, -3, -3, 5, -3, -3, -3, -3},
      {2, 1, 1, 1, 1, 1, 1, 2}
    };
    for (RoutingConfig routing :
        List.of(
            RoutingConfig.SOFTMAX,
            RoutingConfig.SOFTMAX_TOPK,
            RoutingConfig.SIGMOID,
            RoutingConfig.deepseekV3(4, 2, true, 1f))) {
      for (int k : new int[] {1, 3, 4}) {
        MoeConfig config = MoeConfig.builder(4, 4, 8, k).routing(routing).build();
        verifyRouting(config, routing.correctionBias() ? new double[8] : null, logits, null);
      }
    }
  }

  /** Experts that a model switched off with minus infinity. */
  @Test
  public final void required_MOE_6_1_minusInfinityIsNotChosen() {
    double off = Double.NEGATIVE_INFINITY;
    double[][] logits = {{off, 1, off, 2, off, 3}, {3, 2, 1, off, off, off}};
    for (RoutingConfig routing :
        List.of(
            RoutingConfig.SOFTMAX_RENORMALIZE, RoutingConfig.SOFTMAX_TOPK, RoutingConfig.SIGMOID)) {
      verifyRouting(MoeConfig.builder(4, 4, 6, 3).routing(routing).build(), null, logits, null);
    }
  }

  /** A table chooses, the scores weigh. */
  @Test
  public final void required_MOE_6_1_byTokenId() {
    for (RoutingConfig.Scoring scoring :
        List.of(
            RoutingConfig.Scoring.SOFTMAX,
            RoutingConfig.Scoring.SIGMOID,
            RoutingConfig.Scoring.SQRT_SOFTPLUS)) {
      RoutingConfig routing =
          RoutingConfig.builder(scoring)
              .renormalize(true)
              .scalingFactor(1.5f)
              .byTokenId(true)
              .build();
      Data data = new Data(21);
      double[][] logits = new double[9][8];
      int[] tokenIds = new int[logits.length];
      for (int t = 0; t < logits.length; t++) {
        tokenIds[t] = data.below(VOCABULARY);
        for (int e = 0; e < 8; e++) {
          logits[t][e] = (float) (2 * data.gaussian());
        }
      }
      verifyRouting(MoeConfig.builder(4, 4, 8, 3).routing(routing).build(), null, logits, tokenIds);
    }
  }

  private static final int VOCABULARY = 13;

  private void verifyRouting(
      MoeConfig config, double @Nullable [] bias, double[][] logits, int @Nullable [] tokenIds) {
    int tokens = logits.length;
    int topK = config.topK();
    Tensor z = Data.empty(DType.F32, tokens, config.numExperts());
    for (int t = 0; t < tokens; t++) {
      for (int e = 0; e < config.numExperts(); e++) {
        z.set(logits[t][e], t, e);
      }
    }
    MoeLayerWeights layer = withBias(config, bias);
    RouterWeights router = java.util.Objects.requireNonNull(layer.router());
    Tensor scale = router.expertScale();
    Tensor table = router.tokenExperts();
    try (BlockOps ops = prepare(config, layer);
        Bench bench = new Bench(device())) {
      Tensor ids = bench.output(DType.I32, tokens, topK);
      Tensor weights = bench.output(DType.F32, tokens, topK);
      var workspace = bench.workspace(ops.workspaceBytes(tokens));
      if (tokenIds == null) {
        ops.route(bench.input(z), ids, weights, workspace, bench.stream);
      } else {
        Tensor given = bench.input(Tensor.ofInts(tokenIds, tokens));
        ops.routeByTokenId(bench.input(z), given, ids, weights, workspace, bench.stream);
      }
      bench.stream.synchronize();
      double[][] gotIds = bench.rows(ids);
      double[][] gotWeights = bench.rows(weights);
      double tolerance = BlockCases.tolerance(config.numExperts());
      for (int t = 0; t < tokens; t++) {
        int[] expectedIds = new int[topK];
        double[] expected = new double[topK];
        ReferenceRouting.route(
            config.routing(),
            z.select(0, t).toDoubles(),
            bias,
            scale == null ? null : scale.toDoubles(),
            tokenIds == null || table == null ? null : table.select(0, tokenIds[t]).toInts(),
            expectedIds,
            expected);
        int token = t;
        assertArrayEquals(
            java.util.Arrays.stream(expectedIds).asDoubleStream().toArray(),
            gotIds[t],
            () -> "MOE-6.1: ids of token " + token + " for " + config.routing());
        for (int k = 0; k < topK; k++) {
          assertEquals(
              expected[k],
              gotWeights[t][k],
              Math.abs(expected[k]) * tolerance + Float.MIN_NORMAL,
              () -> "MOE-6.1: a weight of token " + token + " for " + config.routing());
        }
      }
      bench.requireNothingElseWritten();
    }
  }

  private static MoeLayerWeights withBias(MoeConfig config, double @Nullable [] bias) {
    Data data = new Data(1);
    Tensor correction = null;
    if (bias != null) {
      correction = Data.empty(DType.F32, bias.length);
      for (int e = 0; e < bias.length; e++) {
        correction.set(bias[e], e);
      }
    }
    return new MoeLayerWeights(
        Layout.STACKED.random(config, data),
        new RouterWeights(
            data.normal(config.weightDtype(), 1, config.numExperts(), config.hiddenSize()),
            null,
            correction,
            null,
            config.routing().expertScale() ? data.normal(DType.F32, 1, config.numExperts()) : null,
            config.routing().byTokenId() ? tokenExperts(config, data) : null),
        null,
        null);
  }

  /** Different experts for each id, in no order. */
  private static Tensor tokenExperts(MoeConfig config, Data data) {
    Tensor table = Data.empty(DType.I32, VOCABULARY, config.topK());
    for (int v = 0; v < VOCABULARY; v++) {
      int first = data.below(config.numExperts());
      for (int k = 0; k < config.topK(); k++) {
        table.set((first + 3 * k) % config.numExperts(), v, k);
      }
    }
    return table;
  }

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

  private static Tensor hidden(MoeConfig config, Data data, int tokens) {
    return data.normal(config.inputDtype(), 1, tokens, config.hiddenSize());
  }

  private static double tolerance(MoeConfig config, DType output) {
    int shared = config.sharedExpert().map(SharedExpertConfig::intermediateSize).orElse(1);
    return Tolerance.block(config.inputDtype(), output, Math.max(config.hiddenSize(), shared));
  }

  private static List<Optional<LoraLayer>> denseAdapters(MoeConfig config, Data data) {
    return List.of(
        Optional.of(Adapters.dense(config, data, config.weightDtype(), 5)),
        Optional.empty(),
        Optional.of(Adapters.dense(config, data, config.weightDtype(), 16)),
        Optional.of(LoraLayer.NONE));
  }

  private static int[] mapping(int tokens) {
    int[] mapping = new int[tokens];
    for (int t = 0; t < tokens; t++) {
      mapping[t] = new int[] {2, -1, 0, 0, 3, 1}[t % 6];
    }
    return mapping;
  }

  private static @Nullable LoraLayer adapter(List<Optional<LoraLayer>> slots, int slot) {
    return slot < 0 ? null : slots.get(slot).orElse(null);
  }

  private MoeLoraContext context(Bench bench, List<Optional<LoraLayer>> slots, int[] mapping) {
    return new KitLoraContext(
        slots.stream()
            .map(slot -> slot.map((LoraLayer layer) -> KitLoraContext.map(layer, bench::input)))
            .toList(),
        bench.input(Tensor.ofInts(mapping, mapping.length)),
        mapping.length > 0,
        punicaWrapper(device()));
  }

  private static double[][] outputOf(
      MoeConfig config,
      MoeLayerWeights weights,
      Tensor hidden,
      Tensor routed,
      List<Optional<LoraLayer>> slots,
      int @Nullable [] mapping) {
    double[][] rows = new double[Math.toIntExact(hidden.size(0))][];
    for (int t = 0; t < rows.length; t++) {
      LoraLayer lora = mapping == null ? null : adapter(slots, mapping[t]);
      double[] row = routed.select(0, t).toDoubles();
      if (weights.latent() != null) {
        row = ReferenceMoe.latentOut(weights.latent(), row, lora);
      }
      if (weights.shared() != null) {
        double[] shared =
            ReferenceMoe.sharedExpert(
                config.sharedExpert().orElseThrow(),
                weights.shared(),
                hidden.select(0, t).toDoubles(),
                lora);
        for (int h = 0; h < row.length; h++) {
          row[h] += shared[h];
        }
      }
      rows[t] = row;
    }
    return rows;
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

  // ---- 6.3: dispatch and combine

  /**
   * Rows, counts and adapters of dispatched tokens; their weighted sum.
   *
   * @param dtypes element types of the tensors
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.Grid#dtypePairs")
  public final void required_MOE_6_3_dispatchAndCombine(Object dtypes) {
    for (boolean onInput : new boolean[] {false, true}) {
      for (int tokens : new int[] {0, 1, 29}) {
        MoeConfig.Builder b =
            Grid.layer((Grid.Dtypes) dtypes, 17, 5, 6, 3).routerWeightOnInput(onInput);
        verifyDispatch(b.build(), tokens);
        verifyDispatch(
            b.parallel(ParallelConfig.expert(2, 0))
                .expertMap(ExpertMap.of(1, -1, 0, 2, -1, -1))
                .build(),
            tokens);
      }
    }
  }

  private void verifyDispatch(MoeConfig config, int tokens) {
    Data data = new Data(tokens);
    MoeLayerWeights weights =
        new MoeLayerWeights(Layout.STACKED.random(config, data), null, null, null);
    Problem p = new Problem(config, weights.experts(), tokens, 9);
    for (int t = 0; t < tokens; t += 4) {
      p.id(t, 1, t % 8 == 0 ? -1 : 77);
      p.mapping[t] = t;
    }
    Problem.Batched expected = p.new Batched();
    try (BlockOps ops = prepare(config, weights);
        Bench bench = new Bench(device())) {
      Tensor map = p.expertMap();
      var routing =
          new ExpertRouting(
              bench.input(p.ids),
              bench.input(p.topkWeights),
              map == null ? null : bench.input(map));
      Tensor batched = bench.output(p.hidden.dtype(), expected.hidden.shape());
      Tensor counts = bench.output(DType.I32, expected.expertNumTokens.shape());
      Tensor slots = bench.output(DType.I32, expected.mapping.shape());
      var workspace = bench.workspace(ops.workspaceBytes(tokens));
      ops.dispatch(
          bench.input(p.hidden),
          routing,
          bench.input(Tensor.ofInts(p.mapping, tokens)),
          batched,
          counts,
          slots,
          workspace,
          bench.stream);
      bench.stream.synchronize();
      assertArrayEquals(
          expected.expertNumTokens.toInts(),
          bench.read(counts).toInts(),
          "MOE-6.3: expertNumTokens");
      Compare.rows(
          "MOE-6.3",
          "dispatched rows, " + p,
          expected.rows(expected.hidden),
          expected.rows(bench.read(batched)),
          // copied, or multiplied once
          Tolerance.unitRoundoff(config.inputDtype()));
      requireSlots(expected, bench.read(slots));

      Tensor results = data.normal(p.hidden.dtype(), 1, expected.hidden.shape());
      Tensor routed = bench.output(DType.F32, tokens, config.expertHiddenSize());
      ops.combine(bench.input(results), routing, routed, workspace, bench.stream);
      bench.stream.synchronize();
      Compare.rows(
          "MOE-6.3",
          "combined rows, " + p,
          combined(p, results),
          bench.rows(routed),
          Tolerance.linear(config.topK()));
      bench.requireNothingElseWritten();
    }
  }

  private static void requireSlots(Problem.Batched expected, Tensor slots) {
    for (int e = 0; e < expected.mapping.size(0); e++) {
      for (int j = 0; j < expected.expertNumTokens.get(e); j++) {
        assertEquals(
            expected.mapping.get(e, j),
            slots.get(e, j),
            "MOE-6.3: adapter slot of row " + j + " of expert " + e);
      }
    }
  }

  private static double[][] combined(Problem p, Tensor results) {
    int experts = p.weights.numExperts();
    int[] next = new int[experts];
    double[][] rows = new double[p.tokens][p.config.expertHiddenSize()];
    for (int t = 0; t < p.tokens; t++) {
      for (int k = 0; k < p.config.topK(); k++) {
        int e = p.routing().localExpert(t, k, experts);
        if (e >= 0) {
          double w = p.config.routerWeightOnInput() ? 1 : p.topkWeights.get(t, k);
          double[] y = results.select(0, e).select(0, next[e]++).toDoubles();
          for (int h = 0; h < y.length; h++) {
            rows[t][h] += w * y[h];
          }
        }
      }
    }
    return rows;
  }

  // ---- 6.4: threads, release

  /** Four threads, one object. */
  @Test
  public final void required_MOE_6_4_concurrentCallsDoNotDisturbEachOther() {
    MoeConfig config =
        MoeConfig.builder(33, 8, 16, 4)
            .weightDtype(DType.F32)
            .lora(new LoraConfig(4, 64))
            .sharedExpert(new SharedExpertConfig(29, io.moe4j.api.config.Activation.SILU, true))
            .build();
    Data data = new Data(5);
    MoeLayerWeights weights = new BlockCases.Block("shared", config).weights(data, true);
    try (BlockOps ops = prepare(config, weights)) {
      List<Runnable> work = new ArrayList<>();
      List<Bench> benches = new ArrayList<>();
      for (int tokens : new int[] {1, 9, 33, 64}) {
        Tensor hidden = hidden(config, data, tokens);
        Tensor routed = data.normal(DType.F32, 1, tokens, config.hiddenSize());
        double[][] truth = outputOf(config, weights, hidden, routed, List.of(), null);
        Bench bench = new Bench(device());
        benches.add(bench);
        Tensor in = bench.input(hidden);
        Tensor sum = bench.input(routed);
        Tensor out = bench.output(DType.F32, tokens, config.hiddenSize());
        var workspace = bench.workspace(ops.workspaceBytes(tokens));
        work.add(() -> {
          for (int round = 0; round < 25; round++) {
            ops.output(in, sum, null, out, workspace, bench.stream);
            bench.stream.synchronize();
            Compare.rows(
                "MOE-6.4",
                "output beside three other threads",
                truth,
                bench.rows(out),
                tolerance(config, DType.F32));
          }
        });
      }
      Concurrency.together(work);
      benches.forEach(Bench::close);
    }
  }

  /** No tokens: nothing is written, nothing fails. */
  @Test
  public final void required_MOE_6_4_zeroTokens() {
    MoeConfig config =
        MoeConfig.builder(33, 8, 16, 4)
            .weightDtype(DType.F32)
            .sharedExpert(new SharedExpertConfig(29, io.moe4j.api.config.Activation.SILU, true))
            .build();
    Data data = new Data(5);
    MoeLayerWeights weights = new BlockCases.Block("shared", config).weights(data, true);
    try (BlockOps ops = prepare(config, weights);
        Bench bench = new Bench(device())) {
      Tensor hidden = bench.input(hidden(config, data, 0));
      Tensor logits = bench.output(DType.F32, 0, 16);
      Tensor ids = bench.output(DType.I32, 0, 4);
      Tensor topkWeights = bench.output(DType.F32, 0, 4);
      Tensor routed = bench.output(DType.F32, 0, 33);
      var workspace = bench.workspace(ops.workspaceBytes(0));
      ops.routerLogits(hidden, logits, workspace, bench.stream);
      ops.route(logits, ids, topkWeights, workspace, bench.stream);
      ops.output(hidden, routed, null, routed, workspace, bench.stream);
      bench.stream.synchronize();
      bench.requireNothingElseWritten();
    } catch (RuntimeException e) {
      throw new AssertionError("MOE-6.4: a call without tokens threw", e);
    }
  }

  /** Device memory taken by {@code prepare} and by a call is given back. */
  @Test
  public final void required_MOE_6_4_closeReleasesDeviceMemory() {
    MoeConfig config = MoeConfig.builder(4, 4, 2, 1).weightDtype(DType.F32).build();
    boolean counted = deviceBytesInUse().isEmpty();
    if (counted && !blockOps().deviceType().equals(DeviceType.CPU)) {
      Assumptions.abort("override deviceBytesInUse() to test this on " + device().info().id());
    }
    var counting = new CountingDevice(device());
    long before = counted ? 0 : deviceBytesInUse().orElseThrow();
    try (BlockOps ops =
            blockOps().prepare(config, withBias(config, null), counted ? counting : device());
        Bench bench = new Bench(device())) {
      Tensor hidden = bench.input(hidden(config, new Data(1), 3));
      Tensor logits = bench.output(DType.F32, 3, 2);
      ops.routerLogits(hidden, logits, bench.workspace(ops.workspaceBytes(3)), bench.stream);
      bench.stream.synchronize();
    }
    long after = counted ? counting.bytesInUse() : deviceBytesInUse().orElseThrow();
    assertEquals(before, after, "MOE-6.4: bytes of device memory in use before and after");
  }

  /** {@code close()} twice. */
  @Test
  public final void required_MOE_6_4_closeMayBeCalledTwice() {
    MoeConfig config = MoeConfig.builder(4, 4, 2, 1).weightDtype(DType.F32).build();
    BlockOps ops = prepare(config, withBias(config, null));
    ops.close();
    try {
      ops.close();
    } catch (RuntimeException e) {
      throw new AssertionError("MOE-6.4: the second close() threw", e);
    }
  }
}
