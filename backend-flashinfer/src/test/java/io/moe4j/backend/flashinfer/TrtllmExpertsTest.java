package io.moe4j.backend.flashinfer;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.DeviceException;
import io.moe4j.api.config.Activation;
import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.BackendPriority;
import io.moe4j.api.spi.MonolithicExperts;
import io.moe4j.api.spi.MonolithicInputs;
import io.moe4j.api.spi.Support;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.Packing;
import io.moe4j.reference.ReferenceMonolithicExperts;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.Random;
import java.util.stream.LongStream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** What the kit does not ask: errors, kernels that are missing, references, refusals. */
@SuppressWarnings("try") // closing before the end is what is tested
class TrtllmExpertsTest {
  private static final int TOKENS = 7;
  private static final Platform B200 = Platform.of(DeviceInfo.cuda(0, "NVIDIA B200", 10, 0));

  @TempDir private Path temp;

  private final HostCuda device = new HostCuda(10, 0);
  private final List<Device.Buffer> buffers = new ArrayList<>();

  @BeforeEach
  void needsCompiler() {
    Standin.assumeCompiler();
  }

  @AfterEach
  void giveBack() {
    new Standin.Controls(Standin.trtllm()).ask("standin_no_checksum");
    buffers.forEach(Device.Buffer::close);
    assertThat(device.taken()).as("bytes nobody gave back").isZero();
  }

  private Tensor onDevice(Tensor host) {
    Device.Buffer buffer = device.allocate(host.dtype().byteSize(host.elementCount()));
    buffers.add(buffer);
    Tensor t = Tensor.of(host.dtype(), buffer.memory(), host.shape());
    device.copy(host, t, device.defaultStream());
    return t;
  }

  private static MoeConfig.Builder layer() {
    return Layers.config(128, 64, 5, 2);
  }

  private static ExpertWeights weights(MoeConfig c) {
    return Layers.plain(c, 3, GateUpLayout.HALVES);
  }

  private MonolithicInputs inputs(MoeConfig c, DType out) {
    Random random = new Random(5);
    return new MonolithicInputs(
        onDevice(Layers.random(random, 0.7, DType.BF16, TOKENS, c.hiddenSize())),
        onDevice(Layers.random(random, 1, DType.BF16, TOKENS, c.numExperts())),
        null,
        onDevice(Layers.empty(out, TOKENS, c.hiddenSize())));
  }

  private void run(MonolithicExperts experts, MonolithicInputs in, @Nullable MoeLoraContext lora) {
    Device.Buffer scratch = device.allocate(experts.workspaceBytes(TOKENS));
    try (scratch) {
      experts.apply(in, lora, new Workspace(scratch.memory()), device.stream(0x52));
    }
  }

  private static void assertClose(MoeConfig c, ExpertWeights w, MonolithicInputs in) {
    assertClose(c, w, in, 0.01);
  }

  private static void assertClose(
      MoeConfig c, ExpertWeights w, MonolithicInputs in, double tolerance) {
    Tensor expected = Layers.empty(DType.F32, TOKENS, c.hiddenSize());
    try (ReferenceMonolithicExperts truth = new ReferenceMonolithicExperts(c, w)) {
      truth.apply(
          new MonolithicInputs(
              HostCuda.onHost(in.hidden()), HostCuda.onHost(in.routerLogits()), null, expected),
          null,
          new Workspace(Layers.empty(DType.U8, 1).memory()),
          DeviceStream.HOST);
    }
    double[] want = expected.toDoubles();
    double[] got = HostCuda.onHost(in.output()).toDoubles();
    double difference = 0;
    double size = 0;
    for (int i = 0; i < want.length; i++) {
      difference += (got[i] - want[i]) * (got[i] - want[i]);
      size += want[i] * want[i];
    }
    assertThat(size).isPositive();
    assertThat(Math.sqrt(difference / size)).isLessThan(tolerance);
  }

  /** Adapters that change nothing: the path with deltas must give what the other gives. */
  private record NoDeltas(Tensor tokenLoraMapping, boolean hasLora, List<String> calls)
      implements MoeLoraContext, PunicaWrapper {
    @Override
    public int maxLoras() {
      return 1;
    }

    @Override
    public @Nullable LoraLayer slot(int slot) {
      return null;
    }

    @Override
    public PunicaWrapper punicaWrapper() {
      return this;
    }

    @Override
    public MoeLoraContext withTokenLoraMapping(Tensor mapping) {
      return this;
    }

    @Override
    public void addLoraW13(W13 call, DeviceStream stream) {
      calls.add("w13 " + call.y().dtype() + java.util.Arrays.toString(call.y().shape()));
    }

    @Override
    public void addLoraW2(W2 call, DeviceStream stream) {
      calls.add("w2 " + call.y().dtype() + java.util.Arrays.toString(call.y().shape()));
    }

    @Override
    public void addLoraLinear(Linear call, DeviceStream stream) {
      throw new AssertionError("not of routed experts");
    }
  }

  private NoDeltas noDeltas(boolean hasLora) {
    return new NoDeltas(
        onDevice(Tensor.ofInts(new int[TOKENS], TOKENS)), hasLora, new ArrayList<>());
  }

  @ParameterizedTest
  @CsvSource({"128, 64", "128, 128", "256, 96", "72, 40"})
  void bothPathsComputeTheLayer(int h, int i) {
    for (Activation a :
        List.of(Activation.SILU, Activation.SILU.withLimit(0.6f), Activation.SWIGLUOAI)) {
      MoeConfig c = Layers.config(h, i, 5, 2).activation(a).lora(new LoraConfig(1, 8)).build();
      ExpertWeights w = weights(c);
      assertThat(Standin.trtllmBackend().isSupportedConfig(c, B200)).isEqualTo(Support.yes());
      try (var experts = (MonolithicExperts) Standin.trtllmBackend().prepare(c, w, device)) {
        for (DType out : List.of(DType.BF16, DType.F32)) {
          MonolithicInputs in = inputs(c, out);
          run(experts, in, null);
          assertClose(c, w, in);
          NoDeltas lora = noDeltas(true);
          MonolithicInputs again = inputs(c, out);
          run(experts, again, lora);
          assertClose(c, w, again);
          assertThat(lora.calls())
              .containsExactly("w13 BF16[7, 2, " + 2 * i + "]", "w2 BF16[7, 2, " + h + "]");
        }
      }
    }
  }

  private static MoeConfig.Builder quantised(int h, int i, QuantScheme scheme) {
    return Layers.config(h, i, 5, 2)
        .quantScheme(scheme)
        .quantizedActivations(!scheme.activations().isNone());
  }

  /** Biases as gpt-oss has them; widths that are whole tiles and such that are not. */
  @ParameterizedTest
  @CsvSource({"256, 128, HALVES", "160, 96, INTERLEAVED"})
  void mxfp4WithBiases(int h, int i, GateUpLayout layout) {
    MoeConfig c =
        quantised(h, i, QuantScheme.MXFP4)
            .activation(Activation.SWIGLUOAI)
            .expertBias(true)
            .build();
    ExpertWeights w = Layers.mxfp4(c, 7, layout);
    assertThat(Standin.trtllmBackend().isSupportedConfig(c, B200)).isEqualTo(Support.yes());
    try (var experts = (MonolithicExperts) Standin.trtllmBackend().prepare(c, w, device)) {
      for (DType out : List.of(DType.BF16, DType.F32)) {
        MonolithicInputs in = inputs(c, out);
        run(experts, in, null);
        assertClose(c, w, in);
      }
    }
    MoeConfig lora = c.toBuilder().lora(new LoraConfig(1, 8)).build();
    assertThat(Standin.trtllmBackend().isSupportedConfig(lora, B200).toString())
        .isEqualTo(
            "LoRA with biases: FlashInfer adds either a bias or a delta to the first product");
  }

  @Test
  void mxfp4WithDeltas() {
    MoeConfig c = quantised(160, 96, QuantScheme.MXFP4).lora(new LoraConfig(1, 8)).build();
    ExpertWeights w = Layers.mxfp4(c, 7, GateUpLayout.HALVES);
    assertThat(Standin.trtllmBackend().isSupportedConfig(c, B200)).isEqualTo(Support.yes());
    try (var experts = (MonolithicExperts) Standin.trtllmBackend().prepare(c, w, device)) {
      for (MoeLoraContext adapters : new MoeLoraContext[] {null, noDeltas(true)}) {
        MonolithicInputs in = inputs(c, DType.BF16);
        run(experts, in, adapters);
        assertClose(c, w, in);
      }
    }
  }

  /**
   * What only one scale for each expert may take: gpt-oss's activation needs its numbers scaled.
   */
  private static Activation activation(TrtllmScheme scheme) {
    return scheme.takesParameters() ? Activation.SILU.withLimit(3) : Activation.SILU;
  }

  /** Widths that are whole tiles and such that are not. */
  @ParameterizedTest
  @CsvSource({
    "MXFP4_MXFP8, 256, 128, 0.03",
    "MXFP4_MXFP8, 160, 96, 0.03",
    "MXFP8, 256, 128, 0.03",
    "MXFP8, 160, 96, 0.03",
    "FP8_TENSOR, 256, 128, 0.05",
    "FP8_TENSOR, 144, 80, 0.05",
    "FP8_BLOCK, 256, 256, 0.06",
    "FP8_BLOCK, 160, 96, 0.06",
    "NVFP4, 256, 128, 0.06",
    "NVFP4, 144, 80, 0.06"
  })
  void codedActivations(TrtllmScheme scheme, int h, int i, double tolerance) {
    MoeConfig c = quantised(h, i, scheme.scheme()).activation(activation(scheme)).build();
    assertThat(TrtllmScheme.of(c)).contains(scheme);
    ExpertWeights w =
        scheme == TrtllmScheme.FP8_TENSOR ? Layers.fp8(c, 8) : Layers.scaled(c, scheme.scheme(), 6);
    // Hidden states are coded once, by the largest input scale: the layer that FlashInfer computes.
    ExpertWeights asComputed =
        scheme == TrtllmScheme.NVFP4 ? Layers.scaled(c, scheme.scheme(), 6, 0.006f) : w;
    assertThat(Standin.trtllmBackend().isSupportedConfig(c, B200)).isEqualTo(Support.yes());
    try (var experts = (MonolithicExperts) Standin.trtllmBackend().prepare(c, w, device)) {
      for (DType out : List.of(DType.BF16, DType.F32)) {
        MonolithicInputs in = inputs(c, out);
        run(experts, in, null);
        // Between the products numbers are coded: next to a tie the code is another, 6 % off.
        assertClose(c, asComputed, in, tolerance);
      }
    }
    assertThat(
            Standin.trtllmBackend()
                .isSupportedConfig(c.toBuilder().lora(new LoraConfig(1, 8)).build(), B200)
                .toString())
        .startsWith("LoRA with quantised activations: what the second product reads");
  }

  @ParameterizedTest
  @CsvSource({
    "256, 256, WORDS_ALONG_IN",
    "320, 96, WORDS_ALONG_IN",
    "160, 96, WORDS_ALONG_OUT",
    "160, 96, WORDS_ALONG_OUT_AWQ"
  })
  void integersOfFourBits(int h, int i, Packing packing) {
    for (Activation a : List.of(Activation.SILU, Activation.SWIGLUOAI)) {
      MoeConfig c =
          quantised(h, i, QuantScheme.int4(32)).activation(a).lora(new LoraConfig(1, 8)).build();
      assertThat(TrtllmScheme.of(c)).contains(TrtllmScheme.MXINT4);
      ExpertWeights w = Layers.int4(c, 9, packing);
      assertThat(Standin.trtllmBackend().isSupportedConfig(c, B200)).isEqualTo(Support.yes());
      try (var experts = (MonolithicExperts) Standin.trtllmBackend().prepare(c, w, device)) {
        for (MoeLoraContext adapters : new MoeLoraContext[] {null, noDeltas(true)}) {
          MonolithicInputs in = inputs(c, DType.BF16);
          run(experts, in, adapters);
          assertClose(c, w, in);
        }
      }
    }
  }

  /**
   * GPTQ stores F16: the kernels take BF16, so up to 0.2 % go, and what does not fit is refused.
   */
  @Test
  void scalesOfIntegersAreRounded() {
    MoeConfig c = quantised(160, 96, QuantScheme.int4(32)).build();
    ExpertWeights w = Layers.withScales(Layers.int4(c, 9, Packing.WORDS_ALONG_IN), DType.F16, 1);
    try (var experts = (MonolithicExperts) Standin.trtllmBackend().prepare(c, w, device)) {
      MonolithicInputs in = inputs(c, DType.BF16);
      run(experts, in, null);
      assertClose(c, w, in);
    }
    ExpertWeights large = Layers.withScales(w, DType.F32, Float.MAX_VALUE);
    assertThatThrownBy(() -> Standin.trtllmBackend().prepare(c, large, device))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("is too large for BF16, which FlashInfer takes");
  }

  /** Half of the experts, the second half: ids keep their places in what is packed. */
  @Test
  void integersOfFourBitsOnARank() {
    MoeConfig c =
        Layers.config(160, 96, 6, 2)
            .quantScheme(QuantScheme.int4(32))
            .expertMap(ExpertMap.linear(6, 2, 1))
            .build();
    ExpertWeights w = Layers.int4(c, 9, Packing.WORDS_ALONG_IN);
    try (var experts = (MonolithicExperts) Standin.trtllmBackend().prepare(c, w, device)) {
      MonolithicInputs in = inputs(c, DType.BF16);
      run(experts, in, null);
      assertClose(c, w, in);
    }
  }

  @Test
  void parametersThatWouldMeetNumbersBeforeTheirScalesAreRefused() {
    for (TrtllmScheme scheme : TrtllmScheme.values()) {
      MoeConfig c =
          quantised(256, 128, scheme.scheme()).activation(Activation.SILU.withLimit(3)).build();
      Support answer = Standin.trtllmBackend().isSupportedConfig(c, B200);
      if (scheme.takesParameters()) {
        assertThat(answer).as(scheme.name()).isEqualTo(Support.yes());
      } else {
        assertThat(answer.reasons())
            .extracting(Support.Reason::code)
            .containsExactly(Support.Code.ACTIVATION);
        assertThat(answer.toString()).endsWith("to numbers before their scales");
      }
    }
  }

  @Test
  void aBatchWithoutAdaptersTakesTheShortPath() {
    MoeConfig c = layer().lora(new LoraConfig(1, 8)).build();
    Standin.Controls module = new Standin.Controls(Standin.trtllm());
    try (var experts = (MonolithicExperts) Standin.trtllmBackend().prepare(c, weights(c), device)) {
      long before = module.ask("standin_calls_with_delta");
      NoDeltas lora = noDeltas(false);
      run(experts, inputs(c, DType.BF16), lora);
      assertThat(lora.calls()).isEmpty();
      assertThat(module.ask("standin_calls_with_delta")).isEqualTo(before);
      assertThat(module.ask("standin_last_stream")).isEqualTo(0x52);
    }
  }

  @Test
  void aThousandCallsLeaveNoReferenceAndNoMemory() {
    MoeConfig c = Layers.config(8, 8, 3, 2).lora(new LoraConfig(1, 8)).build();
    FlashInferTrtllmBackend backend = Standin.trtllmBackend();
    MonolithicInputs in = inputs(c, DType.BF16);
    NoDeltas lora = noDeltas(true);
    long live;
    long taken = device.taken();
    try (var experts = (MonolithicExperts) backend.prepare(c, weights(c), device)) {
      run(experts, in, lora);
      live = Standin.liveObjects();
      long during = device.taken();
      int held = ManagedTensors.held();
      for (int i = 0; i < 1000; i++) {
        run(experts, in, i % 2 == 0 ? lora : null);
      }
      assertThat(Standin.liveObjects()).isEqualTo(live);
      assertThat(device.taken()).isEqualTo(during);
      assertThat(ManagedTensors.held()).isEqualTo(held);
    }
    assertThat(Standin.liveObjects()).isLessThan(live);
    assertThat(device.taken()).isEqualTo(taken);
  }

  @Test
  void aForwardThatFailsSaysWhyAndTheNextOneWorks() {
    MoeConfig c = layer().lora(new LoraConfig(1, 8)).build();
    ExpertWeights w = weights(c);
    Standin.Controls module = new Standin.Controls(Standin.trtllm());
    try (var experts = (MonolithicExperts) Standin.trtllmBackend().prepare(c, w, device)) {
      MonolithicInputs in = inputs(c, DType.BF16);
      NoDeltas lora = noDeltas(true);
      for (MoeLoraContext adapters : new MoeLoraContext[] {null, lora}) {
        module.failNext("RuntimeError", "an error of the card");
        assertThatThrownBy(() -> run(experts, in, adapters))
            .isInstanceOf(DeviceException.class)
            .hasMessage("trtllm_bf16_moe of FlashInfer failed: RuntimeError: an error of the card");
      }
      run(experts, in, null);
      assertClose(c, w, in);
      experts.close();
      assertThatThrownBy(() -> run(experts, in, null)).isInstanceOf(IllegalStateException.class);
    }
  }

  @Test
  void aKernelWithAnotherChecksumIsNotTaken() {
    MoeConfig c = layer().build();
    try (var experts = (MonolithicExperts) Standin.trtllmBackend().prepare(c, weights(c), device)) {
      MonolithicInputs in = inputs(c, DType.BF16);
      new Standin.Controls(Standin.trtllm()).ask("standin_wrong_checksum");
      assertThatThrownBy(() -> run(experts, in, null))
          .isInstanceOf(DeviceException.class)
          .hasMessageContaining("the kernel kernels/bf16.cubin is not in [" + Standin.cubins())
          .hasMessageContaining("has SHA-256 ")
          .hasMessageContaining("pip install flashinfer-cubin");
      new Standin.Controls(Standin.trtllm()).ask("standin_no_checksum");
      run(experts, in, null);
    }
  }

  @Test
  void withoutTheKernelsFolderItIsRefused() throws Exception {
    Path copy = temp.resolve("fused_moe_trtllm_sm100.so");
    Files.copy(Standin.trtllm(), copy);
    Installed bare =
        new Installed(() ->
            new SearchPlaces(
                Optional.of(copy),
                Optional.of("0.6.18"),
                Optional.of(Standin.tvm()),
                List.of(),
                Optional.empty(),
                List.of(),
                Optional.of(temp.resolve("missing"))));
    FlashInferTrtllmBackend backend = new FlashInferTrtllmBackend(bare, _ -> new HostKernels());
    assertThat(backend.isSupportedConfig(layer().build(), B200).toString())
        .isEqualTo(
            "no folder with the compiled kernels of FlashInfer's TRTLLM experts was found: pip"
                + " install flashinfer-cubin, or name it with FLASHINFER_CUBIN_DIR");
  }

  @Test
  void olderVersionsAreRefused() {
    FlashInferTrtllmBackend backend =
        new FlashInferTrtllmBackend(
            Standin.installed(Standin.trtllm(), "0.6.15"), _ -> new HostKernels());
    assertThat(backend.isSupportedConfig(layer().build(), B200).toString())
        .isEqualTo(
            "FlashInfer 0.6.15 has no trtllm_bf16_moe that takes ids and weights apart, 0.6.18 has");
  }

  @Test
  void everyReasonIsSaid() {
    FlashInferTrtllmBackend backend = Standin.trtllmBackend();
    assertThat(backend.supportsLora()).isTrue();
    Platform h200 = Platform.of(DeviceInfo.cuda(0, "NVIDIA H200", 9, 0));
    assertThat(backend.isSupportedConfig(layer().build(), h200).toString())
        .isEqualTo("FlashInfer has TRTLLM experts for capability 10.x, this is 9.0");
    MoeConfig odd =
        layer()
            .expertBias(true)
            .activation(Activation.GELU)
            .batchInvariant(true)
            .routerWeightOnInput(true)
            .inputDtype(DType.F16)
            .build();
    assertThat(backend.isSupportedConfig(odd, B200).reasons())
        .extracting(Support.Reason::code)
        .contains(
            Support.Code.BIAS,
            Support.Code.ACTIVATION,
            Support.Code.BATCH_INVARIANCE,
            Support.Code.ROUTER_WEIGHT_ON_INPUT,
            Support.Code.DTYPE);
    assertThat(
            backend
                .isSupportedConfig(layer().quantScheme(QuantScheme.NVFP4).build(), B200)
                .toString())
        .startsWith("quantisation [nvfp4] without quantised activations is none of: none; fp8 per");
    MoeConfig many = Layers.config(32, 16, 600, 40).build();
    assertThat(backend.isSupportedConfig(many, B200).toString())
        .isEqualTo("40 of 600 experts a token, FlashInfer sorts up to 32 of 512");
    assertThat(backend.priority(layer().build(), B200)).isLessThan(BackendPriority.GPU_PORTABLE);
    assertThat(backend.externalStatus(B200))
        .extracting(s -> s.what() + " " + s.usable())
        .containsExactly("FlashInfer true", "TVM-FFI true");
  }

  @Test
  void rowsStandWhereTheEpilogueWantsThem() {
    // FlashInfer's table says where a row goes; this one, which row comes.
    assertThat(LongStream.range(0, 16).map(TrtllmWeights::rowBefore))
        .containsExactly(0L, 4L, 8L, 12L, 16L, 20L, 24L, 28L, 1L, 5L, 9L, 13L, 17L, 21L, 25L, 29L);
    assertThat(LongStream.range(0, 128).map(TrtllmWeights::rowBefore).distinct().count())
        .isEqualTo(128);
    assertThat(TrtllmScheme.PLAIN.padded(2880)).isEqualTo(2944);
    assertThat(TrtllmScheme.MXINT4.padded(2880)).isEqualTo(3072);
    assertThat(TrtllmScheme.PLAIN.padded(4096)).isEqualTo(4096);
  }
}
