package io.moe4j.tck;

import io.moe4j.api.comm.Communicator;
import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.spi.BlockOpsProvider;
import io.moe4j.api.spi.ExchangeInputs;
import io.moe4j.api.spi.ExchangedRows;
import io.moe4j.api.spi.ExpertExchange;
import io.moe4j.api.spi.ExpertExchangeProvider;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.reference.ReferenceBlockOps;
import io.moe4j.reference.ReferenceExperts;
import io.moe4j.reference.ReferenceMoe;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import org.jspecify.annotations.Nullable;

/** One rank of an exchange under test: dispatch, the reference's experts, combine. */
final class ExchangeRank implements AutoCloseable {
  private final ExchangeCases.ExchangeCase c;
  private final int rank;
  private final MoeConfig config;
  private final Device device;
  private final Problem problem;
  private final ExpertWeights weights;
  private final BlockOps block;
  private final ExpertExchange exchange;
  private final ReferenceExperts experts;

  ExchangeRank(
      ExchangeCases.ExchangeCase c,
      int rank,
      Communicator communicator,
      Device device,
      ExpertExchangeProvider provider,
      BlockOpsProvider blocks) {
    this.c = c;
    this.rank = rank;
    this.config = c.config(rank);
    this.device = device;
    this.problem = c.problem(rank);
    this.weights = c.experts(rank);
    this.block = blocks.prepare(config, new MoeLayerWeights(weights, null, null, null), device);
    this.exchange = provider.open(config, communicator, block, device);
    this.experts = new ReferenceExperts(config, weights);
  }

  /** {@return the reference's operations on the host} */
  static BlockOpsProvider referenceBlockOps() {
    return new BlockOpsProvider() {
      @Override
      public DeviceType deviceType() {
        return DeviceType.CPU;
      }

      @Override
      public BlockOps prepare(MoeConfig config, MoeLayerWeights weights, Device device) {
        return new ReferenceBlockOps(config, weights);
      }
    };
  }

  /** One call, compared with the truth. */
  void verify(String rule) {
    try (Bench bench = new Bench(device)) {
      Tensor routed = run(rule, bench);
      Compare.rows(
          rule,
          "rank " + rank + " of " + c,
          truth(),
          bench.rows(routed),
          Tolerance.block(config.inputDtype(), DType.F32, config.expertHiddenSize()));
      bench.requireNothingElseWritten();
    }
  }

  /** {@return the bytes of one call's result} */
  byte[] run() {
    try (Bench bench = new Bench(device)) {
      return bench.read(run("MOE-10.2", bench)).segment().toArray(ValueLayout.JAVA_BYTE);
    }
  }

  /** All experts' sum, or that of this rank's where the caller is to sum. */
  private double[][] truth() {
    if (exchange.outputIsReduced()) {
      return problem.truth();
    }
    double[][] rows = new double[problem.tokens][];
    for (int t = 0; t < rows.length; t++) {
      int slot = problem.mapping[t];
      rows[t] =
          ReferenceMoe.experts(
              config,
              weights,
              new ExpertRouting(problem.ids, problem.topkWeights, map()),
              t,
              problem.hidden.select(0, t).toDoubles(),
              slot < 0 || !c.lora() ? null : c.slots(rank).get(slot).orElse(null));
    }
    return rows;
  }

  private @Nullable Tensor map() {
    return config
        .expertMap()
        .map(m -> Tensor.ofInts(m.toArray(), m.numGlobalExperts()))
        .orElse(null);
  }

  private Tensor run(String rule, Bench bench) {
    DeviceStream stream = bench.stream;
    Tensor map = map();
    ExchangeInputs inputs =
        new ExchangeInputs(
            bench.input(problem.hidden),
            new ExpertRouting(
                bench.input(problem.ids),
                bench.input(problem.topkWeights),
                map == null ? null : bench.input(map)),
            c.lora() ? bench.input(Tensor.ofInts(problem.mapping, problem.tokens)) : null,
            c.maxTokens());
    Workspace workspace = bench.workspace(exchange.workspaceBytes(c.maxTokens()));
    ExchangedRows rows = exchange.dispatch(inputs, workspace, stream);
    requireShapes(rule, rows);
    Tensor output = bench.output(DType.F32, rows.hidden().shape());
    compute(rows, output, stream);
    Tensor routed = bench.output(DType.F32, problem.tokens, config.expertHiddenSize());
    exchange.combine(output, rows, inputs, routed, workspace, stream);
    stream.synchronize();
    return routed;
  }

  private void requireShapes(String rule, ExchangedRows rows) {
    boolean batched = config.activationFormat() == ActivationFormat.BATCHED;
    if (exchange.activationFormat() != config.activationFormat()
        || batched != (rows.routing() == null)
        || batched != (rows.expertNumTokens() != null)) {
      throw new AssertionError(
          rule
              + ": "
              + exchange.name()
              + " gives "
              + exchange.activationFormat()
              + " rows "
              + rows
              + " to "
              + config.activationFormat()
              + " experts");
    }
    long given = rows.hidden().size(batched ? 1 : 0);
    int most = exchange.maxRows(c.maxTokens());
    if (given > most) {
      throw new AssertionError(
          rule + ": " + given + " rows, maxRows(" + c.maxTokens() + ") is " + most);
    }
  }

  /** On copies in host memory, so that it serves any device. */
  private void compute(ExchangedRows rows, Tensor output, DeviceStream stream) {
    Tensor host = Data.empty(DType.F32, output.shape());
    ExpertRouting routing = rows.routing();
    Tensor counts = rows.expertNumTokens();
    ExpertsInputs call =
        routing != null
            ? ExpertsInputs.standard(
                fetch(rows.hidden(), stream),
                new ExpertRouting(
                    fetch(routing.topkIds(), stream), fetch(routing.topkWeights(), stream), map()),
                host)
            : ExpertsInputs.batched(
                fetch(rows.hidden(), stream),
                fetch(java.util.Objects.requireNonNull(counts), stream),
                host);
    Tensor slots = rows.loraMapping();
    MoeLoraContext lora =
        slots == null
            ? null
            : new KitLoraContext(
                c.slots(rank), fetch(slots, stream), true, new KitPunicaWrapper(device));
    experts.apply(call, lora, new Workspace(hostMemory()), DeviceStream.HOST);
    device.copy(host, output, stream);
    stream.synchronize();
  }

  private static HostMemory hostMemory() {
    return new HostMemory(MemorySegment.ofArray(new byte[0]));
  }

  private Tensor fetch(Tensor t, DeviceStream stream) {
    Tensor host = Data.empty(t.dtype(), t.shape());
    device.copy(t, host, stream);
    stream.synchronize();
    return host;
  }

  @Override
  public void close() {
    exchange.close();
    experts.close();
    block.close();
  }
}
