package io.moe4j.backend.flashinfer;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.spi.ModularExperts;
import io.moe4j.api.spi.Support;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.reference.ReferenceExperts;
import io.moe4j.tck.GpuTest;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestInstance;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/**
 * FlashInfer's kernels on the card: schemes that the kit does not ask for, our conversions around
 * them, graphs, references. A module that was built without a scheme's kernels skips its tests.
 */
@GpuTest
@TestInstance(TestInstance.Lifecycle.PER_CLASS)
class CutlassGpuTest {
  private CudaDevice device;

  @BeforeAll
  void open() {
    System.setProperty(FlashInferProperties.TACTICS, "off");
    device = OnCard.open();
  }

  @AfterAll
  void close() {
    System.clearProperty(FlashInferProperties.TACTICS);
    if (device != null) {
      device.close();
    }
  }

  /** A batch on both sides. */
  private final class Batch implements AutoCloseable {
    private final DeviceTensors tensors = new DeviceTensors(device);
    private final ExpertsInputs host;
    private final ExpertsInputs there;
    private final MoeConfig config;

    Batch(MoeConfig c, int tokens, DType hiddenType, DType outputType, long seed) {
      config = c;
      Random random = new Random(seed);
      Tensor hidden = Layers.random(random, 0.7, hiddenType, tokens, c.hiddenSize());
      Tensor ids = Layers.empty(DType.I32, tokens, c.topK());
      Tensor weights = Layers.empty(DType.F32, tokens, c.topK());
      for (int t = 0; t < tokens; t++) {
        for (int k = 0; k < c.topK(); k++) {
          ids.set(t == 1 && k == 0 ? -1 : (t + 2 * k) % c.numExperts(), t, k);
          weights.set(random.nextDouble(), t, k);
        }
      }
      host =
          ExpertsInputs.standard(
              hidden,
              new ExpertRouting(ids, weights, null),
              Layers.empty(DType.F32, tokens, c.hiddenSize()));
      there =
          ExpertsInputs.standard(
              OnCard.put(tensors, hidden),
              new ExpertRouting(OnCard.put(tensors, ids), OnCard.put(tensors, weights), null),
              tensors.allocate(outputType, tokens, c.hiddenSize()));
    }

    Workspace workspace(ModularExperts experts) {
      long bytes = experts.workspaceBytes((int) there.hidden().size(0));
      return new Workspace(tensors.allocate(DType.U8, Math.max(1, bytes)).memory());
    }

    double[] output() {
      return OnCard.fetch(device, there.output()).toDoubles();
    }

    double error(ExpertWeights w) {
      try (ReferenceExperts truth = new ReferenceExperts(config, w)) {
        truth.apply(
            host, null, new Workspace(Layers.empty(DType.U8, 1).memory()), DeviceStream.HOST);
      }
      double[] expected = host.output().toDoubles();
      double[] got = output();
      double difference = 0;
      double size = 0;
      for (int i = 0; i < expected.length; i++) {
        difference += (got[i] - expected[i]) * (got[i] - expected[i]);
        size += expected[i] * expected[i];
      }
      return Math.sqrt(difference / size);
    }

    @Override
    public void close() {
      tensors.close();
    }
  }

  private ModularExperts prepare(MoeConfig c, ExpertWeights w) {
    FlashInferCutlassBackend backend = new FlashInferCutlassBackend();
    Support support = backend.isSupportedConfig(c, new Platform(List.of(device.info()), Map.of()));
    assertThat(support).isEqualTo(Support.yes());
    try {
      return (ModularExperts) backend.prepare(c, w, device);
    } catch (io.moe4j.api.DeviceException e) {
      assumeTrue(
          !String.valueOf(e.getMessage()).contains("Could not construct fused moe op"),
          "this module was built without " + c.quantSchemes());
      throw e;
    }
  }

  private void check(MoeConfig c, ExpertWeights w, double tolerance) {
    try (ModularExperts experts = prepare(c, w)) {
      for (int tokens : new int[] {1, 9, 70}) {
        for (DType type : List.of(c.inputDtype(), DType.F32)) {
          try (Batch b = new Batch(c, tokens, type, type, 5)) {
            experts.apply(b.there, null, b.workspace(experts), device.defaultStream());
            device.defaultStream().synchronize();
            assertThat(b.error(w)).as("T=%d %s", tokens, type).isLessThan(tolerance);
          }
        }
      }
    }
  }

  private static MoeConfig fp8() {
    return Layers.config(256, 192, 5, 2)
        .quantScheme(Layers.FP8_STATIC)
        .quantizedActivations(true)
        .build();
  }

  @Test
  void fp8WithStaticActivations() {
    MoeConfig c = fp8();
    check(c, Layers.fp8(c, 8), 0.05);
  }

  @ParameterizedTest
  @CsvSource({"HALVES", "INTERLEAVED"})
  void mxfp4(GateUpLayout layout) {
    MoeConfig c =
        Layers.config(256, 128, 5, 2)
            .quantScheme(QuantScheme.MXFP4)
            .activation(Activation.SWIGLUOAI)
            .expertBias(true)
            .build();
    check(c, Layers.mxfp4(c, 7, layout), 0.01);
  }

  /** Widths that are no whole tiles, as gpt-oss has them, and a hidden state in f32. */
  @Test
  void mxfp4OfPaddedWidths() {
    MoeConfig c =
        Layers.config(160, 96, 5, 2)
            .quantScheme(QuantScheme.MXFP4)
            .activation(Activation.SWIGLUOAI)
            .expertBias(true)
            .build();
    check(c, Layers.mxfp4(c, 7, GateUpLayout.HALVES), 0.01);
  }

  @Test
  void mxfp4OfWiderMatrices() {
    MoeConfig c = Layers.config(512, 384, 6, 3).quantScheme(QuantScheme.MXFP4).build();
    check(c, Layers.mxfp4(c, 11, GateUpLayout.HALVES), 0.01);
  }

  @Test
  void graphsReplayOtherTokensAndRoutings() {
    MoeConfig plain = Layers.config(256, 192, 8, 3).build();
    MoeConfig fp8 = fp8();
    replay(plain, Layers.plain(plain, 3, GateUpLayout.HALVES));
    replay(fp8, Layers.fp8(fp8, 8));
  }

  private void replay(MoeConfig c, ExpertWeights w) {
    DeviceStream stream = device.defaultStream();
    for (int tokens : new int[] {1, 40}) {
      try (ModularExperts experts = prepare(c, w);
          Batch b = new Batch(c, tokens, DType.BF16, DType.BF16, 5);
          Batch other = new Batch(c, tokens, DType.BF16, DType.BF16, 6)) {
        Workspace workspace = b.workspace(experts);
        experts.apply(b.there, null, workspace, stream);
        try (Device.Graph graph =
            device
                .capture(stream, () -> experts.apply(b.there, null, workspace, stream))
                .orElseThrow()) {
          experts.apply(other.there, null, workspace, stream);
          double[] eager = other.output();
          device.copy(other.there.hidden(), b.there.hidden(), stream);
          device.copy(
              other.there.requireRouting().topkWeights(),
              b.there.requireRouting().topkWeights(),
              stream);
          graph.launch(stream);
          assertThat(b.output()).as("%s, T=%d", c.quantSchemes(), tokens).isEqualTo(eager);
          graph.launch(stream);
          assertThat(b.output()).as("the same again").isEqualTo(eager);
        }
      }
    }
  }

  /** Forwards that come again are replayed: bits, not just numbers, must be those of a call. */
  @Test
  void whatComesAgainIsReplayedToTheBit() {
    MoeConfig plain = Layers.config(256, 192, 8, 3).build();
    MoeConfig fp8 = fp8();
    again(plain, Layers.plain(plain, 3, GateUpLayout.HALVES));
    again(fp8, Layers.fp8(fp8, 8));
  }

  private void again(MoeConfig c, ExpertWeights w) {
    DeviceStream stream = device.defaultStream();
    try (ModularExperts experts = prepare(c, w);
        Batch kept = new Batch(c, 7, DType.F32, DType.F32, 5)) {
      Workspace workspace = kept.workspace(experts);
      for (int seed = 0; seed < 2 * Replays.TIMES; seed++) {
        try (Batch fresh = new Batch(c, 7, DType.F32, DType.F32, seed)) {
          experts.apply(fresh.there, null, fresh.workspace(experts), stream);
          device.copy(fresh.there.hidden(), kept.there.hidden(), stream);
          device.copy(
              fresh.there.requireRouting().topkWeights(),
              kept.there.requireRouting().topkWeights(),
              stream);
          experts.apply(kept.there, null, workspace, stream);
          assertThat(kept.output()).as("call %d", seed).isEqualTo(fresh.output());
        }
      }
      assertThat(((CutlassExperts) experts).recorded()).isPositive();
    }
  }

  @Test
  void memoryGoesBack() {
    MoeConfig c = Layers.config(256, 192, 8, 3).build();
    ExpertWeights w = Layers.plain(c, 3, GateUpLayout.HALVES);
    long before = device.allocatedBytes();
    try (ModularExperts experts = prepare(c, w);
        Batch b = new Batch(c, 40, DType.F32, DType.F32, 5)) {
      Workspace workspace = b.workspace(experts);
      long during = device.allocatedBytes();
      for (int i = 0; i < 1000; i++) {
        experts.apply(b.there, null, workspace, device.defaultStream());
      }
      device.defaultStream().synchronize();
      assertThat(device.allocatedBytes()).isEqualTo(during);
      assertThat(b.error(w)).isLessThan(0.01);
    }
    assertThat(device.allocatedBytes()).isEqualTo(before);
  }

  /** Counts that no pack divides, and addresses that no pack starts at. */
  @Test
  void hiddenStatesBecomeE4m3AsOnTheHost() {
    CardKernels card = CardKernels.of(device);
    HostCuda host = new HostCuda(9, 0);
    Random random = new Random(2);
    Tensor scale = Tensor.ofFloats(new float[] {0.0371f}, 1);
    for (DType type : List.of(DType.F32, DType.BF16, DType.F16)) {
      for (int n : new int[] {1, 8, 4099}) {
        Tensor in = Layers.empty(type, n + 1);
        for (long i = 0; i <= n; i++) {
          in.set(i == 5 ? Double.NaN : random.nextGaussian() * Math.scalb(1.0, (int) i % 9 - 4), i);
        }
        for (int from : new int[] {0, 1}) {
          for (int to : new int[] {0, 1}) {
            try (DeviceTensors there = new DeviceTensors(device);
                DeviceTensors here = new DeviceTensors(host)) {
              Tensor out = there.allocate(DType.F8_E4M3, n + 1);
              card.quantize(
                  OnCard.put(there, in).narrow(0, from, n),
                  out.narrow(0, to, n),
                  OnCard.put(there, scale),
                  from == to, // nothing is in front
                  device.defaultStream());
              Tensor inHere = here.allocate(type, n + 1);
              here.copy(in, inHere);
              Tensor scaleHere = here.allocate(DType.F32, 1);
              here.copy(scale, scaleHere);
              Tensor expected = here.allocate(DType.F8_E4M3, n + 1);
              new HostKernels()
                  .quantize(
                      inHere.narrow(0, from, n),
                      expected.narrow(0, to, n),
                      scaleHere,
                      false,
                      host.defaultStream());
              assertThat(OnCard.fetch(device, out.narrow(0, to, n)).toDoubles())
                  .as("%s, %d of %d to %d", type, n, from, to)
                  .isEqualTo(HostCuda.onHost(expected.narrow(0, to, n)).toDoubles());
            }
          }
        }
      }
    }
  }

  /** What Blackwell's experts get, which no card here runs, against the host's. */
  @Test
  void hiddenStatesBecomeMxfp8AsOnTheHost() {
    CardKernels card = CardKernels.of(device);
    HostCuda host = new HostCuda(10, 0);
    Random random = new Random(2);
    for (DType type : List.of(DType.F32, DType.BF16, DType.F16)) {
      Tensor in = Layers.empty(type, 37, 160);
      for (long r = 0; r < 37; r++) {
        // Rows of all magnitudes, zeros among them.
        double size = r == 3 ? 0 : Math.scalb(1.0, (int) (r - 18) / 2);
        for (long i = 0; i < 160; i++) {
          in.set(i / 32 == 2 && r % 5 == 0 ? 0 : random.nextGaussian() * size, r, i);
        }
      }
      try (DeviceTensors there = new DeviceTensors(device);
          DeviceTensors here = new DeviceTensors(host)) {
        Tensor out = there.allocate(DType.F8_E4M3, 37, 160);
        Tensor scales = there.allocate(DType.U8, 37, 5);
        card.quantizeMx(OnCard.put(there, in), out, scales, device.defaultStream());
        Tensor inHere = here.allocate(type, in.shape());
        here.copy(in, inHere);
        Tensor expected = here.allocate(DType.F8_E4M3, 37, 160);
        Tensor expectedScales = here.allocate(DType.U8, 37, 5);
        new HostKernels().quantizeMx(inHere, expected, expectedScales, host.defaultStream());
        assertThat(OnCard.fetch(device, scales).toDoubles())
            .isEqualTo(HostCuda.onHost(expectedScales).toDoubles());
        assertThat(OnCard.fetch(device, out).toDoubles())
            .isEqualTo(HostCuda.onHost(expected).toDoubles());
      }
    }
  }

  /**
   * What makes the module's input begins beside the routing, in a chain of forwards that all use
   * the same tensors: it must see the hidden states of its own forward, and overtake nobody who
   * still reads what the forward before it made.
   */
  @ParameterizedTest
  @CsvSource({
    "1, false, false",
    "70, false, false",
    "3000, false, false",
    "1, true, false",
    "70, true, false",
    "3000, true, false",
    "1, false, true",
    "70, false, true",
    "3000, false, true",
    "1, true, true",
    "70, true, true",
    "3000, true, true"
  })
  void inputIsMadeBesideTheRouting(int tokens, boolean padded, boolean inside) {
    MoeConfig c =
        padded ? Layers.config(160, 96, 5, 2).quantScheme(QuantScheme.MXFP4).build() : fp8();
    ExpertWeights w = padded ? Layers.mxfp4(c, 7, GateUpLayout.HALVES) : Layers.fp8(c, 8);
    CardKernels card = CardKernels.of(device);
    CardKernels.Router router = card.router(c.routing(), c.numExperts(), c.topK());
    DeviceStream stream = device.defaultStream();
    int forwards = 6;
    try (ModularExperts experts = prepare(c, w);
        DeviceTensors tensors = new DeviceTensors(device)) {
      Tensor[] hidden = new Tensor[forwards];
      Tensor[] logits = new Tensor[forwards];
      Tensor[] output = new Tensor[forwards];
      for (int i = 0; i < forwards; i++) {
        Random random = new Random(i);
        hidden[i] =
            OnCard.put(tensors, Layers.random(random, 0.7, DType.BF16, tokens, c.hiddenSize()));
        logits[i] =
            OnCard.put(tensors, Layers.random(random, 1, DType.F32, tokens, c.numExperts()));
        output[i] = tensors.allocate(DType.BF16, tokens, c.hiddenSize());
      }
      Tensor x = tensors.allocate(DType.BF16, tokens, c.hiddenSize());
      ExpertRouting routing =
          new ExpertRouting(
              tensors.allocate(DType.I32, tokens, c.topK()),
              tensors.allocate(DType.F32, tokens, c.topK()),
              null);
      Workspace workspace =
          new Workspace(
              tensors.allocate(DType.U8, Math.max(1, experts.workspaceBytes(tokens))).memory());
      double[][] expected = new double[forwards][];
      for (int i = 0; i < forwards; i++) {
        card.rows(CardKernels.Rows.resized(hidden[i], x), stream);
        router.route(logits[i], null, routing.topkIds(), routing.topkWeights(), stream);
        stream.synchronize();
        experts.apply(ExpertsInputs.standard(x, routing, output[i]), null, workspace, stream);
        expected[i] = OnCard.fetch(device, output[i]).toDoubles();
        device.fill(output[i], 0, stream);
      }
      Runnable chain =
          () -> {
            for (int i = 0; i < forwards; i++) {
              card.rows(CardKernels.Rows.resized(hidden[i], x), stream);
              ExpertsInputs inputs = ExpertsInputs.standard(x, routing, output[i]);
              if (inside) {
                assertThat(experts.routeAndApply(logits[i], inputs, workspace, stream)).isTrue();
              } else {
                router.route(logits[i], null, routing.topkIds(), routing.topkWeights(), stream);
                experts.applyRouted(inputs, null, workspace, stream);
              }
            }
          };
      try (Device.Graph graph = device.capture(stream, chain).orElseThrow()) {
        for (int round = 0; round < 20; round++) {
          graph.launch(stream);
          for (int i = 0; i < forwards; i++) {
            assertThat(OnCard.fetch(device, output[i]).toDoubles())
                .as("forward %s of round %s", i, round)
                .isEqualTo(expected[i]);
          }
        }
      }
      chain.run();
      for (int i = 0; i < forwards; i++) {
        assertThat(OnCard.fetch(device, output[i]).toDoubles()).isEqualTo(expected[i]);
      }
    }
  }

  /** Ids, weights and codes of one launch are those of the two kernels, to the bit. */
  @ParameterizedTest
  @CsvSource({
    "1, 128, 8, 2048, 0.02",
    "3, 8, 2, 4096, 0.37",
    "70, 5, 2, 16, 1e-3",
    "1023, 128, 32, 80, 0x1p-60",
    "4097, 128, 8, 512, 0x1p60",
    "129, 40, 4, 2880, 7.25"
  })
  void routingAndInputInOneLaunch(int tokens, int experts, int topK, int width, String scale) {
    CardKernels card = CardKernels.of(device);
    DeviceStream stream = device.defaultStream();
    float s = Float.parseFloat(scale);
    for (RoutingConfig.Scoring scoring :
        List.of(
            RoutingConfig.Scoring.SOFTMAX,
            RoutingConfig.Scoring.SOFTMAX_TOPK,
            RoutingConfig.Scoring.SIGMOID)) {
      RoutingConfig routing = RoutingConfig.builder(scoring).renormalize(true).build();
      assertThat(card.routesInOneLaunch(routing, experts, topK)).isTrue();
      Random random = new Random(tokens);
      Tensor z = Layers.random(random, 1, DType.F32, tokens, experts);
      z.set(Double.NaN, tokens / 2, 0);
      z.set(z.get(0, 1), 0, 2); // a tie
      Tensor x = Layers.random(random, 90 * s, DType.BF16, tokens, width);
      for (int i = 0; i < 64; i++) { // every exponent that a code has, and beyond
        x.set(s * (1 + i % 7 / 8.0) * Math.scalb(1.0, i / 2 - 14), i % tokens, i / tokens % width);
      }
      x.set(Double.POSITIVE_INFINITY, tokens - 1, width - 1);
      x.set(Double.NEGATIVE_INFINITY, tokens - 1, width - 2);
      x.set(Double.NaN, tokens - 1, width - 3);
      x.set(-0.0, tokens - 1, width - 4);
      try (DeviceTensors tensors = new DeviceTensors(device)) {
        Tensor logits = OnCard.put(tensors, z);
        Tensor in = OnCard.put(tensors, x);
        Tensor by = tensors.floats(new float[] {s});
        Tensor[] ids = new Tensor[2];
        Tensor[] weights = new Tensor[2];
        Tensor[] codes = new Tensor[2];
        for (int i = 0; i < 2; i++) {
          ids[i] = tensors.allocate(DType.I32, tokens, topK);
          weights[i] = tensors.allocate(DType.F32, tokens, topK);
          codes[i] = tensors.allocate(DType.F8_E4M3, tokens, width);
        }
        card.router(routing, experts, topK).route(logits, null, ids[0], weights[0], stream);
        card.quantize(in, codes[0], by, false, stream);
        card.routeAndQuantize(
            routing, logits, new ExpertRouting(ids[1], weights[1], null), in, codes[1], by, stream);
        assertSame(ids, weights, codes);
      }
    }
  }

  /** Of each two the second, which the kernel under test wrote, has the values of the first. */
  private void assertSame(Tensor[]... pairs) {
    for (Tensor[] two : pairs) {
      assertThat(OnCard.fetch(device, two[1]).toDoubles())
          .isEqualTo(OnCard.fetch(device, two[0]).toDoubles());
    }
  }

  /** Ids, weights and widened rows of one launch are those of the two kernels, to the bit. */
  @ParameterizedTest
  @CsvSource({
    "1, 128, 4, 2880, 2944",
    "1, 8, 2, 8, 8",
    "3, 8, 2, 4096, 4224",
    "70, 5, 2, 16, 128",
    "4097, 128, 8, 160, 256"
  })
  void routingAndRowsInOneLaunch(int tokens, int experts, int topK, int width, int wide) {
    CardKernels card = CardKernels.of(device);
    DeviceStream stream = device.defaultStream();
    RoutingConfig routing =
        RoutingConfig.builder(RoutingConfig.Scoring.SOFTMAX).renormalize(true).build();
    assertThat(card.routesInOneLaunch(routing, experts, topK)).isTrue();
    Random random = new Random(tokens);
    Tensor x = Layers.random(random, 1, DType.BF16, tokens, width);
    x.set(Double.NaN, tokens - 1, width - 1);
    try (DeviceTensors tensors = new DeviceTensors(device)) {
      Tensor logits = OnCard.put(tensors, Layers.random(random, 1, DType.F32, tokens, experts));
      Tensor in = OnCard.put(tensors, x);
      Tensor[] ids = new Tensor[2];
      Tensor[] weights = new Tensor[2];
      Tensor[] rows = new Tensor[2];
      for (int i = 0; i < 2; i++) {
        ids[i] = tensors.allocate(DType.I32, tokens, topK);
        weights[i] = tensors.allocate(DType.F32, tokens, topK);
        rows[i] = tensors.allocate(DType.BF16, tokens, wide);
        device.fill(rows[i], 0x41, stream);
      }
      card.router(routing, experts, topK).route(logits, null, ids[0], weights[0], stream);
      card.rows(CardKernels.Rows.resized(in, rows[0]), stream);
      card.routeAndResize(
          routing, logits, new ExpertRouting(ids[1], weights[1], null), in, rows[1], stream);
      assertSame(ids, weights, rows);
    }
  }

  /** What the TRTLLM experts want, which no card here runs: FP8 in blocks, NVFP4, packed ids. */
  @Test
  void hiddenStatesBecomeBlocksAndNvfp4AsOnTheHost() {
    CardKernels card = CardKernels.of(device);
    HostKernels host = new HostKernels();
    HostCuda hostDevice = new HostCuda(10, 0);
    Random random = new Random(2);
    Tensor scale = Tensor.ofFloats(new float[] {0.003f}, 1);
    for (DType type : List.of(DType.F32, DType.BF16, DType.F16)) {
      Tensor in = Layers.empty(type, 37, 384);
      for (long r = 0; r < 37; r++) {
        // Rows of all magnitudes, zeros among them.
        double size = r == 3 ? 0 : Math.scalb(1.0, (int) (r - 18) / 2);
        for (long i = 0; i < 384; i++) {
          in.set(i / 128 == 2 && r % 5 == 0 ? 0 : random.nextGaussian() * size, r, i);
        }
      }
      // Of a NaN the block or the group stays NaN; what is too large becomes the largest.
      in.set(Double.NaN, 7, 200);
      in.set(Double.POSITIVE_INFINITY, 9, 20);
      try (DeviceTensors there = new DeviceTensors(device);
          DeviceTensors here = new DeviceTensors(hostDevice)) {
        Tensor inThere = OnCard.put(there, in);
        Tensor inHere = OnCard.put(here, in);
        Tensor[] out = new Tensor[8];
        for (int k = 0; k < 2; k++) {
          DeviceTensors at = k == 0 ? there : here;
          out[4 * k] = at.allocate(DType.F8_E4M3, 37, 384);
          out[4 * k + 1] = at.allocate(DType.F32, 3, 37);
          out[4 * k + 2] = at.allocate(DType.U8, 37, 192);
          out[4 * k + 3] = at.allocate(DType.F8_E4M3, 37, 24);
        }
        card.quantizeBlocks(inThere, out[0], out[1], device.defaultStream());
        card.quantizeNv(inThere, out[2], out[3], OnCard.put(there, scale), device.defaultStream());
        host.quantizeBlocks(inHere, out[4], out[5], hostDevice.defaultStream());
        host.quantizeNv(
            inHere, out[6], out[7], OnCard.put(here, scale), hostDevice.defaultStream());
        for (int k = 0; k < 4; k++) {
          assertThat(OnCard.fetch(device, out[k]).toDoubles())
              .as(type + " " + k)
              .isEqualTo(HostCuda.onHost(out[4 + k]).toDoubles());
        }
      }
    }
  }

  @Test
  void routingIsPackedAsOnTheHost() {
    Random random = new Random(3);
    Tensor ids = Layers.empty(DType.I32, 37, 5);
    for (long i = 0; i < 37 * 5; i++) {
      ids.set(random.nextInt(512), i / 5, i % 5);
    }
    Tensor weights = Layers.random(random, 1, DType.F32, 37, 5);
    HostCuda hostDevice = new HostCuda(10, 0);
    try (DeviceTensors there = new DeviceTensors(device);
        DeviceTensors here = new DeviceTensors(hostDevice)) {
      Tensor out = there.allocate(DType.I32, 37, 5);
      CardKernels.of(device)
          .packRouting(
              OnCard.put(there, ids), OnCard.put(there, weights), out, device.defaultStream());
      Tensor expected = here.allocate(DType.I32, 37, 5);
      new HostKernels()
          .packRouting(
              OnCard.put(here, ids),
              OnCard.put(here, weights),
              expected,
              hostDevice.defaultStream());
      assertThat(OnCard.fetch(device, out).toDoubles())
          .isEqualTo(HostCuda.onHost(expected).toDoubles());
    }
  }

  /** Our kernel around the TRTLLM experts, which no card here runs, against the host's. */
  @Test
  void rowsAreCopiedAsOnTheHost() {
    CardKernels card = CardKernels.of(device);
    HostCuda host = new HostCuda(9, 0);
    Random random = new Random(2);
    Tensor map = Tensor.ofInts(new int[] {3, -1, 0, 2, 2}, 5);
    for (int[] widths :
        new int[][] {{16, 24, 1}, {24, 16, 1}, {10, 7, 1}, {16, 32, 2}, {6, 9, 2}}) {
      int blocks = widths[2];
      Tensor in = Layers.random(random, 1, DType.BF16, 4, widths[0] * blocks);
      for (boolean mapped : new boolean[] {false, true}) {
        int rows = mapped ? 5 : 4;
        try (DeviceTensors there = new DeviceTensors(device);
            DeviceTensors here = new DeviceTensors(host)) {
          Tensor out = there.allocate(DType.BF16, rows, widths[1] * blocks);
          Tensor expected = here.allocate(DType.BF16, rows, widths[1] * blocks);
          card.rows(
              new CardKernels.Rows(
                  OnCard.put(there, in),
                  mapped ? OnCard.put(there, map) : null,
                  out,
                  blocks,
                  blocks > 1),
              device.defaultStream());
          Tensor inHere = here.allocate(DType.BF16, in.shape());
          here.copy(in, inHere);
          Tensor mapHere = here.allocate(DType.I32, 5);
          here.copy(map, mapHere);
          new HostKernels()
              .rows(
                  new CardKernels.Rows(
                      inHere, mapped ? mapHere : null, expected, blocks, blocks > 1),
                  host.defaultStream());
          assertThat(OnCard.fetch(device, out).toDoubles())
              .isEqualTo(HostCuda.onHost(expected).toDoubles());
          card.rows(CardKernels.Rows.zeros(out), device.defaultStream());
          assertThat(OnCard.fetch(device, out).toDoubles()).containsOnly(0.0);
        }
      }
    }
  }
}
