package io.moe4j.backend.flashinfer;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import ch.qos.logback.classic.Level;
import ch.qos.logback.classic.Logger;
import ch.qos.logback.classic.spi.ILoggingEvent;
import ch.qos.logback.core.read.ListAppender;
import io.moe4j.api.DeviceException;
import io.moe4j.api.config.Activation;
import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.BackendPriority;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.spi.ModularExperts;
import io.moe4j.api.spi.Support;
import io.moe4j.api.spi.Tuner;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.reference.ReferenceExperts;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.slf4j.LoggerFactory;

/** What the kit does not ask: quantised weights, versions, tactics, refusals. */
@SuppressWarnings("try") // closing before the end is what is tested
class CutlassExpertsTest {
  private static final int TOKENS = 9;

  @TempDir private Path temp;

  private HostCuda device = new HostCuda(9, 0);
  private final List<Device.Buffer> buffers = new ArrayList<>();

  @BeforeEach
  void noTunedTactics() {
    Standin.assumeCompiler();
    System.setProperty(FlashInferProperties.TACTICS, "off");
  }

  @AfterEach
  void giveBack() {
    System.clearProperty(FlashInferProperties.TACTICS);
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

  /** A batch and where its output goes. */
  private record Batch(ExpertsInputs host, ExpertsInputs device) {}

  private Batch batch(MoeConfig c, DType outputDtype, @Nullable Tensor map) {
    Random random = new Random(5);
    Tensor hidden = Layers.random(random, 0.7, c.inputDtype(), TOKENS, c.hiddenSize());
    Tensor ids = Layers.empty(DType.I32, TOKENS, c.topK());
    Tensor weights = Layers.empty(DType.F32, TOKENS, c.topK());
    for (int t = 0; t < TOKENS; t++) {
      for (int k = 0; k < c.topK(); k++) {
        ids.set(t == 3 && k == 0 ? -1 : (t + 3 * k) % c.numExperts(), t, k);
        weights.set(random.nextDouble(), t, k);
      }
    }
    Tensor output = Layers.empty(DType.F32, TOKENS, c.hiddenSize());
    ExpertsInputs host =
        ExpertsInputs.standard(hidden, new ExpertRouting(ids, weights, map), output);
    ExpertRouting routing =
        new ExpertRouting(onDevice(ids), onDevice(weights), map == null ? null : onDevice(map));
    ExpertsInputs there =
        ExpertsInputs.standard(
            onDevice(hidden), routing, onDevice(Layers.empty(outputDtype, TOKENS, c.hiddenSize())));
    return new Batch(host, there);
  }

  private void run(ModularExperts experts, Batch b) {
    Device.Buffer scratch = device.allocate(experts.workspaceBytes(TOKENS));
    try (scratch) {
      experts.apply(b.device(), null, new Workspace(scratch.memory()), device.stream(0x51));
    }
  }

  private static void assertClose(MoeConfig c, ExpertWeights w, Batch b, double tolerance) {
    try (ReferenceExperts truth = new ReferenceExperts(c, w)) {
      truth.apply(
          b.host(), null, new Workspace(Layers.empty(DType.U8, 1).memory()), DeviceStream.HOST);
    }
    double[] expected = b.host().output().toDoubles();
    double[] got = HostCuda.onHost(b.device().output()).toDoubles();
    double difference = 0;
    double size = 0;
    for (int i = 0; i < expected.length; i++) {
      difference += (got[i] - expected[i]) * (got[i] - expected[i]);
      size += expected[i] * expected[i];
    }
    assertThat(size).isPositive();
    assertThat(Math.sqrt(difference / size)).isLessThan(tolerance);
  }

  private void check(
      FlashInferCutlassBackend backend, MoeConfig c, ExpertWeights w, double tolerance) {
    assertThat(backend.isSupportedConfig(c, Platform.of(device.info()))).isEqualTo(Support.yes());
    for (DType out : List.of(DType.BF16, DType.F32)) {
      Tensor map = c.expertMap().map(m -> Tensor.ofInts(m.toArray(), c.numExperts())).orElse(null);
      Batch b = batch(c, out, map);
      long live = Standin.liveObjects();
      long taken = device.taken();
      try (ModularExperts experts = (ModularExperts) backend.prepare(c, w, device)) {
        run(experts, b);
        assertClose(c, w, b, tolerance);
      }
      assertThat(Standin.liveObjects()).isEqualTo(live);
      assertThat(device.taken()).isEqualTo(taken);
    }
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
    check(Standin.cutlass(), c, Layers.mxfp4(c, 7, layout), 0.01);
  }

  @Test
  void mxfp4OfPaddedWidths() {
    MoeConfig c =
        Layers.config(160, 96, 5, 2)
            .quantScheme(QuantScheme.MXFP4)
            .activation(Activation.SWIGLUOAI)
            .expertBias(true)
            .build();
    ExpertWeights w = Layers.mxfp4(c, 7, GateUpLayout.INTERLEAVED);
    check(Standin.cutlass(), c, w, 0.01);
    // Hidden states of another dtype than the module's are converted and padded.
    Batch b = batch(c.toBuilder().inputDtype(DType.F32).build(), DType.BF16, null);
    try (ModularExperts experts = (ModularExperts) Standin.cutlass().prepare(c, w, device)) {
      run(experts, b);
      assertClose(c, w, b, 0.01);
    }
  }

  @Test
  void fp8WithStaticActivations() {
    MoeConfig c =
        Layers.config(64, 32, 5, 2)
            .quantScheme(Layers.FP8_STATIC)
            .quantizedActivations(true)
            .build();
    // Codes of the smaller of two scales are rounded once more, which the reference does not do.
    check(Standin.cutlass(), c, Layers.fp8(c, 8), 0.05);
  }

  private static MoeConfig scaled(CutlassScheme scheme, DType type) {
    return Layers.config(256, 128, 5, 2)
        .inputDtype(type)
        .weightDtype(type)
        .quantScheme(scheme.scheme())
        .quantizedActivations(true)
        .activation(Activation.SILU.withLimit(3))
        .build();
  }

  /** Scales of blocks and groups, up and gate of unlike global scales, activations quantised. */
  @ParameterizedTest
  @CsvSource({
    // Between the products bf16 numbers are coded: next to a tie the code is another, 6 % off.
    "MXFP4_MXFP8, BF16, 0.03",
    "MXFP4_MXFP8, F16, 0.01",
    "MXFP8, BF16, 0.03",
    "MXFP8, F16, 0.01",
    // Scales of the smaller of two global ones are rounded once more, which the reference does not.
    "NVFP4, BF16, 0.06",
    "NVFP4, F16, 0.06"
  })
  void blackwellsSchemes(CutlassScheme scheme, DType type, double tolerance) {
    device = new HostCuda(10, 0);
    MoeConfig c = scaled(scheme, type);
    check(Standin.cutlass(), c, Layers.scaled(c, scheme.scheme(), 6), tolerance);
    MoeConfig narrow = c.toBuilder().intermediateSize(96).build();
    assertThat(Standin.cutlass().isSupportedConfig(narrow, Platform.of(device.info())).toString())
        .contains("not both multiples of 128");
    assertThat(
            Standin.cutlass()
                .isSupportedConfig(c, Platform.of(DeviceInfo.cuda(0, "NVIDIA H200", 9, 0)))
                .toString())
        .contains("on capability 9.0, FlashInfer has it for 10.0");
  }

  @Test
  void fp8InBlocksNeedsTheHeadersOfThePythonPackage() throws IOException {
    MoeConfig c = scaled(CutlassScheme.FP8_BLOCK, DType.BF16);
    ExpertWeights w = Layers.scaled(c, c.uniformScheme().orElseThrow(), 6);
    // A module of its own: one that was told its headers knows them from then on.
    Path module = Standin.build("blocks", "fused_moe_90.so", "moe.c");
    assertThat(
            new FlashInferCutlassBackend(
                    Standin.installed(module, "0.6.18"), _ -> new HostKernels())
                .isSupportedConfig(c, Platform.of(device.info()))
                .toString())
        .isEqualTo(
            "fp8 block 128x128, activations fp8 dynamic per group 128: FlashInfer compiles these"
                + " kernels while it runs, from headers of its Python package, and no folder of"
                + " packages has flashinfer/data/csrc/nv_internal/tensorrt_llm: pip install"
                + " flashinfer-python==0.6.18");
    Path again = Standin.build("blocks-2", "fused_moe_90.so", "moe.c");
    Path site = temp.resolve("site-packages");
    Files.createDirectories(
        site.resolve("flashinfer/data/csrc/nv_internal/tensorrt_llm/deep_gemm"));
    check(
        new FlashInferCutlassBackend(
            Standin.installed(again, "0.6.18", site), _ -> new HostKernels()),
        c,
        w,
        0.03);
  }

  @Test
  void fp8WithoutQuantisedActivationsIsAnotherScheme() {
    MoeConfig c = Layers.config(64, 32, 5, 2).quantScheme(Layers.FP8_STATIC).build();
    assertThat(Standin.cutlass().isSupportedConfig(c, Platform.of(device.info())).toString())
        .contains("without quantised activations is none of: none; fp8 per tensor");
  }

  @ParameterizedTest
  @CsvSource({
    "0.6.5, 7, 24",
    "0.6.12, 7, 25",
    "0.6.15, 8, 25",
    "0.6.16, 9, 26",
    "0.6.16.post4, 8, 26",
    "0.6.17, 8, 26",
    "0.6.18, 9, 26",
    "0.6.18, 9, 28"
  })
  void everyKnownVersion(String version, int init, int run) {
    Path module =
        Standin.build(
            "moe-" + init + "-" + run,
            "fused_moe_90.so",
            "moe.c",
            "-DINIT_ARGS=" + init,
            "-DRUN_MOE_ARGS=" + run);
    FlashInferCutlassBackend backend =
        new FlashInferCutlassBackend(Standin.installed(module, version), _ -> new HostKernels());
    MoeConfig c = Layers.config(32, 16, 6, 2).activation(Activation.SILU.withLimit(0.8f)).build();
    check(backend, c, Layers.plain(c, 3, GateUpLayout.HALVES), 0.01);
  }

  @Test
  void aModuleThatIsNotWhatItsVersionSaysIsRefused() {
    FlashInferCutlassBackend backend =
        new FlashInferCutlassBackend(
            Standin.installed(Standin.moe(), "0.6.8"), _ -> new HostKernels());
    MoeConfig c = Layers.config(32, 16, 6, 2).build();
    ExpertWeights w = Layers.plain(c, 3, GateUpLayout.HALVES);
    assertThatThrownBy(() -> backend.prepare(c, w, device))
        .isInstanceOf(DeviceException.class)
        .hasMessage("init of FlashInfer 0.6.8 takes 9 arguments, moe4j knows it with [7]");
  }

  @Test
  void f16AndEveryActivationItHas() {
    for (Activation a :
        List.of(
            Activation.SILU,
            Activation.GELU,
            Activation.GELU_TANH,
            Activation.SWIGLUOAI,
            Activation.RELU2_NO_MUL,
            Activation.plain(Activation.Kind.SILU_NO_MUL),
            Activation.plain(Activation.Kind.SWIGLU_STEP).withLimit(0.5f))) {
      MoeConfig c =
          Layers.config(32, 16, 6, 2)
              .inputDtype(DType.F16)
              .weightDtype(DType.F16)
              .activation(a)
              .build();
      check(Standin.cutlass(), c, Layers.plain(c, 4, GateUpLayout.INTERLEAVED), 0.005);
    }
  }

  @Test
  void blocksOfExperts() {
    MoeConfig c = Layers.config(32, 16, 6, 2).parallel(ParallelConfig.expert(3, 1)).build();
    assertThat(ExpertBlock.of(c)).contains(new ExpertBlock(2, 3, 1));
    check(Standin.cutlass(), c, Layers.plain(c, 4, GateUpLayout.HALVES), 0.01);
    MoeConfig uneven = Layers.config(32, 16, 7, 2).parallel(ParallelConfig.expert(3, 1)).build();
    assertThat(Standin.cutlass().isSupportedConfig(uneven, Platform.of(device.info())).toString())
        .contains("expert map");
  }

  @Test
  void whatPrepareCannotDoLeavesNothingBehind() {
    MoeConfig c = Layers.config(32, 16, 6, 2).build();
    ExpertWeights w = Layers.plain(c, 3, GateUpLayout.HALVES);
    FlashInferCutlassBackend backend = Standin.cutlass();
    backend.isSupportedConfig(c, Platform.of(device.info()));
    long live = Standin.liveObjects();
    new Standin.Controls(Standin.moe()).failNext("RuntimeError", "no kernel image");
    assertThatThrownBy(() -> backend.prepare(c, w, device))
        .isInstanceOf(DeviceException.class)
        .hasMessage("init of FlashInfer failed: RuntimeError: no kernel image");
    assertThat(Standin.liveObjects()).isEqualTo(live);
    device.limit(7000);
    assertThatThrownBy(() -> backend.prepare(c, w, device)).isInstanceOf(DeviceException.class);
    device.limit(Long.MAX_VALUE);
    assertThat(Standin.liveObjects()).isEqualTo(live);
    assertThat(device.taken()).isZero();
  }

  @Test
  void aForwardThatFailsSaysWhyAndTheNextOneWorks() {
    MoeConfig c = Layers.config(32, 16, 6, 2).build();
    ExpertWeights w = Layers.plain(c, 3, GateUpLayout.HALVES);
    Batch b = batch(c, DType.BF16, null);
    Standin.Controls module = new Standin.Controls(Standin.moe());
    try (ModularExperts experts = (ModularExperts) Standin.cutlass().prepare(c, w, device)) {
      module.failNext("RuntimeError", "an error of the card");
      assertThatThrownBy(() -> run(experts, b))
          .isInstanceOf(DeviceException.class)
          .hasMessage("run_moe of FlashInfer failed: RuntimeError: an error of the card");
      run(experts, b);
      assertThat(module.ask("standin_last_stream")).isEqualTo(0x51);
      assertClose(c, w, b, 0.01);
      Device.Buffer small = device.allocate(1 << 11);
      try (small) {
        Workspace workspace = new Workspace(small.memory());
        assertThatThrownBy(() -> experts.apply(b.device(), null, workspace, device.defaultStream()))
            .isInstanceOf(DeviceException.class)
            .hasMessageContaining("workspace_buffer too small: need");
      }
      experts.close();
      assertThatThrownBy(() -> run(experts, b)).isInstanceOf(IllegalStateException.class);
    }
  }

  @Test
  void loraIsRefusedWithTheReason() {
    MoeConfig c = Layers.config(32, 16, 6, 2).lora(new LoraConfig(4, 16)).build();
    FlashInferCutlassBackend backend = Standin.cutlass();
    assertThat(backend.supportsLora()).isFalse();
    assertThat(backend.isSupportedConfig(c, Platform.of(device.info())).reasons())
        .extracting(Support.Reason::code, Support.Reason::message)
        .contains(org.assertj.core.groups.Tuple.tuple(Support.Code.LORA, CutlassSupport.NO_LORA));
  }

  @Test
  void absenceIsARow() {
    MoeConfig c = Layers.config(32, 16, 6, 2).build();
    FlashInferCutlassBackend backend =
        new FlashInferCutlassBackend(
            Standin.installed(temp.resolve("none"), "0.6.18"), _ -> new HostKernels());
    Platform h200 = Platform.of(DeviceInfo.cuda(0, "NVIDIA H200", 9, 0));
    assertThat(backend.isSupportedConfig(c, h200).toString())
        .isEqualTo("there is no module fused_moe_90 of FlashInfer at " + temp.resolve("none"));
    assertThat(backend.externalStatus(h200)).hasSize(1);
    assertThat(backend.externalStatus(h200).getFirst().usable()).isFalse();
    assertThat(backend.externalStatus(Platform.cpuOnly()).getFirst().found())
        .startsWith("not looked for: no cuda device");
    Platform old = Platform.of(DeviceInfo.cuda(0, "Tesla T4", 7, 5));
    assertThat(backend.isSupportedConfig(c, old).toString())
        .contains("FlashInfer has no fused_moe module for capability 7.5");
    assertThat(backend.isSupportedConfig(c, Platform.cpuOnly()).toString())
        .contains("no cuda device");
    assertThat(Standin.cutlass().externalStatus(h200))
        .extracting(s -> s.what() + " " + s.usable())
        .containsExactly("FlashInfer true", "TVM-FFI true");
  }

  @Test
  void prioritiesFollowTheFigures() {
    Platform h200 = Platform.of(DeviceInfo.cuda(0, "NVIDIA H200", 9, 0));
    Platform b200 = Platform.of(DeviceInfo.cuda(0, "NVIDIA B200", 10, 0));
    MoeConfig plain = Layers.config(32, 16, 6, 2).build();
    MoeConfig fp8 =
        Layers.config(64, 32, 5, 2)
            .quantScheme(Layers.FP8_STATIC)
            .quantizedActivations(true)
            .build();
    FlashInferCutlassBackend backend = Standin.cutlass();
    assertThat(backend.priority(plain, h200)).isLessThan(BackendPriority.GPU_PORTABLE);
    assertThat(backend.priority(fp8, h200))
        .isGreaterThan(BackendPriority.GPU_PORTABLE)
        .isLessThan(BackendPriority.GPU_TUNED);
    assertThat(backend.priority(fp8, b200)).isLessThan(BackendPriority.GPU_PORTABLE);
    assertThat(backend.priority(plain, Platform.of(DeviceInfo.of(DeviceId.CPU, "CPU"))))
        .isLessThan(BackendPriority.GPU_PORTABLE);
  }

  /** Experts that quantise route in the same launch. */
  @Test
  void routingInTheLaunchThatQuantises() {
    MoeConfig c =
        Layers.config(64, 32, 5, 2)
            .quantScheme(Layers.FP8_STATIC)
            .quantizedActivations(true)
            .build();
    checkRouting(c, Layers.fp8(c, 8));
  }

  /** And those whose input is padded. */
  @Test
  void routingInTheLaunchThatPads() {
    MoeConfig c = Layers.config(160, 96, 5, 2).quantScheme(QuantScheme.MXFP4).build();
    checkRouting(c, Layers.mxfp4(c, 7, GateUpLayout.HALVES));
  }

  /**
   * The routing of the experts is that of a router before them; others, and other input, leave it.
   */
  private void checkRouting(MoeConfig c, ExpertWeights weights) {
    MoeConfig asIs = Layers.config(64, 32, 5, 2).build();
    Batch b = batch(c, DType.BF16, null);
    Tensor logits = onDevice(Layers.random(new Random(4), 1, DType.F32, TOKENS, c.numExperts()));
    ExpertRouting routing = b.device().requireRouting();
    Device.Buffer scratch = device.allocate(1 << 22);
    try (scratch;
        ModularExperts experts = (ModularExperts) Standin.cutlass().prepare(c, weights, device);
        ModularExperts plain =
            (ModularExperts)
                Standin.cutlass()
                    .prepare(asIs, Layers.plain(asIs, 8, GateUpLayout.HALVES), device)) {
      Workspace workspace = new Workspace(scratch.memory());
      DeviceStream stream = device.stream(0x51);
      new HostKernels()
          .router(c.routing(), c.numExperts(), c.topK())
          .route(logits, null, routing.topkIds(), routing.topkWeights(), stream);
      double[] ids = HostCuda.onHost(routing.topkIds()).toDoubles();
      experts.apply(b.device(), null, workspace, stream);
      double[] expected = HostCuda.onHost(b.device().output()).toDoubles();
      for (int call = 0; call < 5; call++) { // replayed from the third on
        HostCuda.bytes(routing.topkIds()).fill((byte) -1);
        HostCuda.bytes(b.device().output()).fill((byte) 0);
        assertThat(experts.routeAndApply(logits, b.device(), workspace, stream)).isTrue();
        assertThat(HostCuda.onHost(routing.topkIds()).toDoubles()).isEqualTo(ids);
        assertThat(HostCuda.onHost(b.device().output()).toDoubles()).isEqualTo(expected);
      }
      HostCuda.bytes(routing.topkIds()).fill((byte) -1);
      assertThat(plain.routeAndApply(logits, b.device(), workspace, stream)).isFalse();
      ExpertsInputs floats =
          ExpertsInputs.standard(
              onDevice(Layers.empty(DType.F32, TOKENS, c.hiddenSize())),
              routing,
              b.device().output());
      assertThat(experts.routeAndApply(logits, floats, workspace, stream)).isFalse();
      assertThat(HostCuda.onHost(routing.topkIds()).toDoubles()).containsOnly(-1);
    }
  }

  /** A file that is named and is not there is said, not silently like none. */
  @Test
  void aNamedFileThatIsMissingIsSaid() {
    Path file = temp.resolve("nowhere.json");
    System.setProperty(FlashInferProperties.TACTICS, file.toString());
    MoeConfig c = Layers.config(128, 128, 4, 2).build();
    Logger logger = (Logger) LoggerFactory.getLogger(TacticTable.class);
    ListAppender<ILoggingEvent> log = new ListAppender<>();
    log.start();
    logger.addAppender(log);
    try {
      ExpertWeights w = Layers.plain(c, 9, GateUpLayout.HALVES);
      Standin.cutlass().prepare(c, w, device).close();
    } finally {
      logger.detachAppender(log);
    }
    assertThat(log.list)
        .filteredOn(e -> e.getLevel().equals(Level.WARN))
        .map(ILoggingEvent::getFormattedMessage)
        .containsExactly(
            "moe4j.flashinfer.tactics names "
                + file
                + ", which is not there: FlashInfer chooses its tactics");
  }

  @Test
  void tuningTriesValidKernelsOnlyAndPrepareTakesWhatItFound() throws IOException {
    Path file = temp.resolve("sub/tactics.json");
    System.setProperty(FlashInferProperties.TACTICS, file.toString());
    MoeConfig c = Layers.config(128, 128, 4, 2).quantScheme(QuantScheme.MXFP4).build();
    ExpertWeights w = Layers.mxfp4(c, 9, GateUpLayout.HALVES);
    FlashInferCutlassBackend backend = Standin.cutlass();
    assertThat(backend.tuningFile()).contains(file);
    assertThat(backend.tuningStatus(device.info()).entries()).isZero();
    Batch b = batch(c, DType.BF16, null);
    List<String> tried = new ArrayList<>();
    try (Tuner tuner = backend.tuner(c, w, device, file)) {
      Tuner.Outcome found =
          tuner
              .tune(List.of(new Tuner.Call(b.device(), null)), () -> true, tried::add)
              .orElseThrow();
      // Tiles of 256 and 512 do not fit K = 128, and the card has no room for kernel 3.
      // Of the two firsts and three seconds, those pairs that were not measured follow.
      assertThat(tried).hasSizeBetween(2 + 3 + 3, 2 + 3 + 2 * 3);
      assertThat(found.measured()).isEqualTo(tried.size());
      assertThat(found.dropped()).isEmpty();
      assertThat(found.micros()).isLessThanOrEqualTo(found.builtInMicros());
      assertThat(tuner.tune(List.of(new Tuner.Call(b.device(), null)), () -> false, tried::add))
          .isEmpty();
    }
    assertThat(backend.tuningStatus(device.info()).applying()).isEqualTo(1);
    // Another choice than the module's, so that it shows.
    String text = Files.readString(file);
    Files.writeString(
        file,
        text.replaceAll("\"first\" : -?\\d+", "\"first\" : 1")
            .replaceAll("\"second\" : -?\\d+", "\"second\" : 6"));
    try (ModularExperts experts = (ModularExperts) backend.prepare(c, w, device)) {
      run(experts, b);
      assertClose(c, w, b, 0.01);
    }
    Standin.Controls module = new Standin.Controls(Standin.moe());
    assertThat(module.ask("standin_last_tactics")).isEqualTo(1006);
    for (String broken :
        List.of(
            text.replace("a stand-in", "another card"),
            text.replaceAll("\"second\" : -?\\d+", "\"second\" : 99"),
            "{",
            "{\"format\": 2, \"entries\": []}",
            "{\"format\": 1}")) {
      Files.writeString(file, broken);
      try (ModularExperts experts = (ModularExperts) backend.prepare(c, w, device)) {
        run(experts, b);
      }
      assertThat(module.ask("standin_last_tactics")).as(broken).isEqualTo(-1001);
      assertThat(backend.tuningStatus(device.info()).explanation()).isNotEmpty();
    }
  }

  /** Sums made with atomics are taken where they are asked for only, and are other kernels. */
  @Test
  void sumsAreFusedOnDemand() throws IOException {
    MoeConfig c = Layers.config(32, 16, 6, 2).build();
    ExpertWeights w = Layers.plain(c, 3, GateUpLayout.HALVES);
    Standin.Controls module = new Standin.Controls(Standin.moe());
    FlashInferLibrary library =
        Standin.installed(Standin.moe(), "0.6.18")
            .cutlass(FlashInferOptions.DEFAULT, device.info())
            .flatMap(Installed.Answer::module)
            .orElseThrow()
            .library();
    Batch b = batch(c, DType.BF16, null);
    TacticKey plain = TacticKey.of(c, device.info(), library, false);
    try {
      for (boolean fused : new boolean[] {false, true}) {
        System.setProperty(FlashInferProperties.FUSED_FINALIZE, Boolean.toString(fused));
        try (ModularExperts experts = (ModularExperts) Standin.cutlass().prepare(c, w, device)) {
          run(experts, b);
          assertThat(module.ask("standin_last_fused")).isEqualTo(fused ? 1 : 0);
          assertClose(c, w, b, 0.01);
        }
        assertThat(TacticKey.of(c, device.info(), library, fused).equals(plain)).isEqualTo(!fused);
      }
    } finally {
      System.clearProperty(FlashInferProperties.FUSED_FINALIZE);
    }
  }

  /** What is mistyped is a reason in the table, not an error when the layer is prepared. */
  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      textBlock =
          """
          moe4j.flashinfer.fused-finalize | yes  | true, false
          moe4j.flashinfer.replays        | many | whole numbers from 0 on
          """)
  void aMistypedSettingIsAReason(String property, String given, String accepted) {
    Platform h200 = Platform.of(device.info());
    Platform b200 = Platform.of(new HostCuda(10, 0).info());
    MoeConfig c = Layers.config(64, 64, 6, 2).build();
    MoeConfig own = c.toBuilder().options(FlashInferOptions.DEFAULT.withReplays(0)).build();
    try {
      System.setProperty(property, given);
      for (Support answer :
          List.of(
              Standin.cutlass().isSupportedConfig(c, h200),
              Standin.trtllmBackend().isSupportedConfig(c, b200))) {
        assertThat(answer.reasons())
            .containsExactly(
                new Support.Reason(
                    Support.Code.OTHER,
                    "-D%s is \"%s\", accepted: %s".formatted(property, given, accepted)));
      }
      assertThat(Standin.cutlass().isSupportedConfig(own, h200)).isEqualTo(Support.yes());
      assertThat(Standin.trtllmBackend().isSupportedConfig(own, b200)).isEqualTo(Support.yes());
    } finally {
      System.clearProperty(property);
    }
  }

  /** A layer's options go before what the process says: another place, fused sums, no replays. */
  @Test
  void optionsOfALayer() throws IOException {
    Platform here = Platform.of(device.info());
    MoeConfig c = Layers.config(32, 16, 6, 2).build();
    ExpertWeights w = Layers.plain(c, 3, GateUpLayout.HALVES);
    FlashInferCutlassBackend backend = Standin.cutlass();
    FlashInferOptions lost = FlashInferOptions.DEFAULT.withPath(temp.resolve("nowhere"));
    assertThat(lost).isNotEqualTo(FlashInferOptions.DEFAULT);
    assertThat(lost.toString()).endsWith("nowhere, sums apart, 32 replays)");
    MoeConfig elsewhere = c.toBuilder().options(lost).build();
    assertThat(backend.isSupportedConfig(elsewhere, here).toString())
        .startsWith("there is no module fused_moe_90 of FlashInfer at " + temp.resolve("nowhere"));
    assertThatThrownBy(() -> backend.prepare(elsewhere, w, device))
        .isInstanceOf(DeviceException.class);
    Path copy = Files.copy(Standin.moe(), temp.resolve("fused_moe_90.so"));
    FlashInferOptions there =
        FlashInferOptions.DEFAULT
            .withPath(temp)
            .withVersion("0.6.14")
            .withFusedFinalize(true)
            .withReplays(0);
    MoeConfig older = c.toBuilder().options(there).build();
    assertThatThrownBy(() -> backend.prepare(older, w, device))
        .hasMessage("init of FlashInfer 0.6.14 takes 9 arguments, moe4j knows it with [7]");
    MoeConfig fused = c.toBuilder().options(there.withVersion("0.6.18")).build();
    Standin.Controls module = new Standin.Controls(copy);
    Batch b = batch(c, DType.BF16, null);
    try (CutlassExperts experts = (CutlassExperts) backend.prepare(fused, w, device)) {
      for (int call = 0; call < 4; call++) {
        run(experts, b);
      }
      assertThat(experts.recorded()).isZero();
      assertThat(module.ask("standin_last_fused")).isEqualTo(1);
      assertClose(c, w, b, 0.01);
    }
  }

  /**
   * The module multiplies by one over the input scale of down; hidden states are divided by one.
   */
  @ParameterizedTest
  @ValueSource(strings = {"gate", "up", "down"})
  void scalesThatAreDividedByAreNotZero(String name) {
    MoeConfig fp8 =
        Layers.config(32, 16, 6, 2)
            .quantScheme(Layers.FP8_STATIC)
            .quantizedActivations(true)
            .build();
    MoeConfig nv = Layers.config(256, 128, 6, 2).quantScheme(QuantScheme.NVFP4).build();
    for (float bad : new float[] {0, -1, Float.NaN, Float.POSITIVE_INFINITY}) {
      Tensor scale = Tensor.ofFloats(new float[] {bad}, 1);
      String message = name + ": the input scale is " + bad + ", must be positive and finite";
      try (DeviceTensors tensors = new DeviceTensors(device)) {
        assertThatThrownBy(() ->
                Standin.cutlass()
                    .prepare(fp8, Layers.withInputScale(Layers.fp8(fp8, 8), name, scale), device))
            .isInstanceOf(IllegalArgumentException.class)
            .hasMessage(message);
        assertThatThrownBy(() ->
                new BlockScaledWeights(
                    Layers.withInputScale(Layers.scaled(nv, QuantScheme.NVFP4, 6), name, scale),
                    true,
                    CutlassScheme.NVFP4,
                    tensors))
            .isInstanceOf(IllegalArgumentException.class)
            .hasMessage(message);
        for (ExpertWeights w :
            List.of(Layers.fp8(fp8, 8), Layers.scaled(nv, QuantScheme.NVFP4, 6))) {
          assertThatThrownBy(
                  () -> new TrtllmTensorScales(Layers.withInputScale(w, name, scale), tensors))
              .isInstanceOf(IllegalArgumentException.class)
              .hasMessage(message);
        }
      }
    }
  }

  @Test
  void placesOfTheFile() {
    assertThat(TacticTable.file("off", null, "/home/me")).isEmpty();
    assertThat(TacticTable.file("/x/y.json", null, null)).contains(Path.of("/x/y.json"));
    assertThat(TacticTable.file(null, "/cache", "/home/me"))
        .contains(Path.of("/cache/moe4j/flashinfer-tactics.json"));
    assertThat(TacticTable.file(" ", "relative", "/home/me"))
        .contains(Path.of("/home/me/.cache/moe4j/flashinfer-tactics.json"));
    assertThat(TacticTable.file(null, null, null)).isEmpty();
  }
}
