package io.moe4j.backend.triton.tuning;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.lora.SlotsKey;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.spi.ModularExperts;
import io.moe4j.api.spi.Tuner;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.backend.triton.TritonBackend;
import io.moe4j.backend.triton.options.TritonProperties;
import io.moe4j.backend.triton.tiles.TilePlan;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaDeviceProvider;
import io.moe4j.cuda.DeviceBuffer;
import io.moe4j.cuda.tuning.TunedTable;
import io.moe4j.tck.GpuTest;
import java.lang.foreign.MemorySegment;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * A small layer is tuned on the card; a layer built afterwards runs what was found, and is right.
 */
@GpuTest
class GpuTunerTest {
  private static final int HIDDEN = 256;
  private static final int INTERMEDIATE = 128;
  private static final int EXPERTS = 8;
  private static final int TOP_K = 2;
  private static final int RANK = 16;
  private static final int ADAPTERS = 2;

  @TempDir private Path directory;

  private final Random random = new Random(7);
  private final List<DeviceBuffer> buffers = new ArrayList<>();
  private CudaDevice device;

  @BeforeEach
  void open() {
    device = new CudaDeviceProvider().open(0);
  }

  @AfterEach
  void close() {
    System.clearProperty(TritonProperties.TILES);
    buffers.forEach(DeviceBuffer::close);
    if (device != null) {
      device.close();
    }
  }

  private Tensor put(Tensor host) {
    DeviceBuffer b = device.allocate(host.dtype().byteSize(host.elementCount()));
    buffers.add(b);
    Tensor there = Tensor.of(host.dtype(), b.memory(), host.shape());
    device.copy(host, there, device.defaultStream());
    return there;
  }

  private Tensor normal(double spread, long... shape) {
    int n = (int) Arrays.stream(shape).reduce(1, (a, b) -> a * b);
    Tensor t = Tensor.of(DType.BF16, MemorySegment.ofArray(new byte[2 * n]), shape);
    Tensor flat = t.reshape(n);
    for (int i = 0; i < n; i++) {
      flat.set(random.nextGaussian() * spread, i);
    }
    return put(t);
  }

  private double[] get(Tensor there) {
    Tensor host =
        Tensor.of(
            there.dtype(),
            MemorySegment.ofArray(new byte[(int) there.dtype().byteSize(there.elementCount())]),
            there.shape());
    device.copy(there, host, device.defaultStream());
    device.defaultStream().synchronize();
    return host.toDoubles();
  }

  private static MoeConfig config(boolean lora) {
    MoeConfig.Builder b =
        MoeConfig.builder(HIDDEN, INTERMEDIATE, EXPERTS, TOP_K)
            .inputDtype(DType.BF16)
            .weightDtype(DType.BF16)
            .maxTokens(64);
    return lora ? b.lora(new LoraConfig(ADAPTERS, RANK)).build() : b.build();
  }

  private ExpertWeights weights() {
    return ExpertWeights.ofStacked(
        normal(0.06, EXPERTS, 2 * INTERMEDIATE, HIDDEN),
        normal(0.09, EXPERTS, HIDDEN, INTERMEDIATE),
        null,
        null,
        true,
        GateUpLayout.HALVES);
  }

  private final SlotsKey key = new SlotsKey("test");

  private record Slots(SlotsKey slotsKey, List<LoraLayer> layers, Tensor tokenLoraMapping)
      implements MoeLoraContext {
    @Override
    public int maxLoras() {
      return layers.size();
    }

    @Override
    public boolean hasLora() {
      return true;
    }

    @Override
    public @Nullable LoraLayer slot(int slot) {
      return layers.get(slot);
    }

    @Override
    public PunicaWrapper punicaWrapper() {
      throw new IllegalStateException("LoRA is fused");
    }

    @Override
    public MoeLoraContext withTokenLoraMapping(Tensor mapping) {
      return new Slots(slotsKey, layers, mapping);
    }
  }

  private LoraFactors factors(int in, int out) {
    return new LoraFactors(normal(0.06, EXPERTS, RANK, in), normal(0.2, EXPERTS, out, RANK));
  }

  private List<LoraLayer> adapters() {
    List<LoraLayer> all = new ArrayList<>();
    for (int a = 0; a < ADAPTERS; a++) {
      all.add(
          new LoraLayer(
              Map.of(
                  LoraTarget.GATE, factors(HIDDEN, INTERMEDIATE),
                  LoraTarget.UP, factors(HIDDEN, INTERMEDIATE),
                  LoraTarget.DOWN, factors(INTERMEDIATE, HIDDEN))));
    }
    return all;
  }

  private Tuner.Call call(int tokens, @Nullable List<LoraLayer> slots) {
    int[] ids = new int[tokens * TOP_K];
    Arrays.setAll(ids, i -> (i / TOP_K * 3 + i % TOP_K) % EXPERTS);
    float[] weights = new float[tokens * TOP_K];
    for (int i = 0; i < weights.length; i++) {
      weights[i] = 0.2f + random.nextFloat();
    }
    int[] mapping = new int[tokens];
    Arrays.setAll(mapping, t -> t % (ADAPTERS + 1) - 1);
    return new Tuner.Call(
        ExpertsInputs.standard(
            normal(1, tokens, HIDDEN),
            new ExpertRouting(
                put(Tensor.ofInts(ids, tokens, TOP_K)),
                put(Tensor.ofFloats(weights, tokens, TOP_K)),
                null),
            normal(1, tokens, HIDDEN)),
        slots == null ? null : new Slots(key, slots, put(Tensor.ofInts(mapping, tokens))));
  }

  private double[] run(MoeConfig config, ExpertWeights weights, Tuner.Call call, String tiles) {
    System.setProperty(TritonProperties.TILES, tiles);
    try (ModularExperts experts =
            (ModularExperts) new TritonBackend().prepare(config, weights, device);
        DeviceBuffer scratch = device.allocate(experts.workspaceBytes(64))) {
      experts.apply(
          call.inputs(), call.lora(), new Workspace(scratch.memory()), device.defaultStream());
      return get(call.inputs().output());
    }
  }

  private static double error(double[] a, double[] b) {
    double error = 0;
    double norm = 0;
    for (int i = 0; i < a.length; i++) {
      error += (a[i] - b[i]) * (a[i] - b[i]);
      norm += b[i] * b[i];
    }
    return Math.sqrt(error / norm);
  }

  @Test
  void whatIsFoundIsUsedAndRight() throws Exception {
    Path file = directory.resolve("tiles.json");
    ExpertWeights weights = weights();
    List<LoraLayer> slots = adapters();
    for (boolean lora : new boolean[] {false, true}) {
      MoeConfig config = config(lora);
      try (Tuner tuner = new TritonBackend().tuner(config, weights, device, file)) {
        for (int tokens : new int[] {1, 48}) {
          List<Tuner.Call> pass =
              List.of(call(tokens, lora ? slots : null), call(tokens, lora ? slots : null));
          Tuner.Outcome o = tuner.tune(pass, () -> true, what -> {}).orElseThrow();
          assertThat(o.dropped()).isEmpty();
          assertThat(o.measured()).isGreaterThan(10);
          assertThat(o.micros()).isPositive().isLessThanOrEqualTo(o.builtInMicros());
        }
        assertThat(tuner.tune(List.of(call(2, lora ? slots : null)), () -> false, what -> {}))
            .isEmpty();
      }
    }
    assertThat(TuningCache.FILE.read(file).orElseThrow()).hasSize(1);
    System.setProperty(TritonProperties.TILES, file.toString());
    assertThat(new TritonBackend().tuningStatus(device.info()).applying()).isEqualTo(4);
  }

  /**
   * An entry that the built-in table would not choose: its kernels run, and give the same result.
   */
  @Test
  void aLayerRunsWhatTheFileSays() throws Exception {
    Path file = directory.resolve("tiles.json");
    TileEntry base =
        new TileEntry(
            48,
            0,
            0,
            "64x128x64-tma-w4-s4",
            "64x64x64-tma-w4-s5",
            false,
            false,
            16,
            16,
            TileEntry.Width.NONE,
            TileEntry.Width.NONE,
            1,
            2);
    TileEntry lora =
        new TileEntry(
            48,
            ADAPTERS,
            RANK,
            "32x64x64-tma-w4-s4",
            "32x128x128-tma-w4-s3",
            false,
            false,
            8,
            32,
            new TileEntry.Width(128, 64, 1),
            new TileEntry.Width(64, 128, 1),
            1,
            2);
    TuningCache.FILE.merge(
        file,
        new TunedTable<>(
            TuningCache.key(config(false), device.info(), EXPERTS), List.of(base, lora)));
    ExpertWeights weights = weights();
    List<LoraLayer> slots = adapters();
    for (boolean with : new boolean[] {false, true}) {
      MoeConfig config = config(with);
      Tuner.Call call = call(48, with ? slots : null);
      double[] builtIn = run(config, weights, call, "off");
      double[] tuned = run(config, weights, call, file.toString());
      assertThat(error(tuned, builtIn)).isLessThan(0x1p-7);
      System.setProperty(TritonProperties.TILES, file.toString());
      TilePlan plan =
          TuningCache.forLayer(config, device.info(), EXPERTS)
              .choose(
                  TuningCache.layer(config, device.info(), EXPERTS)
                      .of(48, with ? ADAPTERS : 0, with ? RANK : 0));
      assertThat(plan.w13()).isEqualTo((with ? lora : base).w13());
    }
  }
}
