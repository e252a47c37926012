package io.moe4j.tck;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;

import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.config.SharedExpertConfig;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.MoeLayerWeights;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * What the {@link BlockOps} of a device have to hold, compared with the float64 reference: routing,
 * router, shared expert, latent projections, dispatch and combine. Extend this class, say which
 * providers; see {@link ExpertsConformanceTest} for outcomes, tolerances and guard bands. On a
 * machine without such a device everything is skipped.
 */
public abstract class BlockOpsConformanceTest extends BlockOutputTests {
  /** For subclasses. */
  protected BlockOpsConformanceTest() {}

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
