package io.moe4j.backend.cpu;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.config.SharedExpertConfig;
import io.moe4j.api.config.SharedExpertConfig.Combine;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.LatentWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.RouterWeights;
import io.moe4j.api.weights.SharedExpertWeights;
import io.moe4j.reference.ReferenceBlockOps;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.channels.FileChannel;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.Arrays;
import java.util.EnumMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

/** The fast block against the float64 one. */
class CpuBlockOpsTest {
  private static final double TOLERANCE = 1e-5;
  private static final int TOKENS = 19;

  private final Random rnd = new Random(11);

  private static BlockOps fast(MoeConfig c, MoeLayerWeights w) {
    return fast(c, w, CpuExpertsTest.Path.VECTOR);
  }

  private static BlockOps fast(MoeConfig c, MoeLayerWeights w, CpuExpertsTest.Path path) {
    return new CpuBlockOps(c, w, path.with(new ThreadTeam(2)));
  }

  private static <T> Stream<Arguments> onEveryPath(Stream<T> cases) {
    List<T> all = cases.toList();
    return CpuExpertsTest.Path.here().stream()
        .flatMap(path -> all.stream().map(c -> Arguments.of(c, path)));
  }

  private static Workspace workspace(BlockOps ops, Arena arena) {
    return new Workspace(
        new HostMemory(arena.allocate(Math.max(64, ops.workspaceBytes(TOKENS)), 64)));
  }

  static Stream<Arguments> routings() {
    return onEveryPath(
        Stream.of(
            RoutingConfig.SOFTMAX,
            RoutingConfig.SOFTMAX_RENORMALIZE,
            RoutingConfig.SOFTMAX_TOPK,
            RoutingConfig.SIGMOID,
            RoutingConfig.of(RoutingConfig.Scoring.SQRT_SOFTPLUS, true),
            RoutingConfig.deepseekV3(4, 2, true, 2.5f),
            RoutingConfig.sparseMixer(0.1f)));
  }

  @ParameterizedTest
  @MethodSource("routings")
  void routes(RoutingConfig routing, CpuExpertsTest.Path path) {
    try (Arena arena = Arena.ofShared()) {
      MoeConfig config = MoeConfig.builder(33, 8, 16, 2).routing(routing).build();
      MoeLayerWeights weights =
          new MoeLayerWeights(
              Samples.experts(rnd, arena, config),
              new RouterWeights(
                  Samples.random(rnd, arena, DType.BF16, 0.3, 16, 33),
                  Samples.random(rnd, arena, DType.F32, 0.3, 16),
                  routing.correctionBias() ? Samples.random(rnd, arena, DType.F32, 0.1, 16) : null),
              null,
              null);
      Tensor hidden = Samples.random(rnd, arena, DType.F32, 1, TOKENS, 33);
      try (BlockOps ops = fast(config, weights, path);
          BlockOps truth = new ReferenceBlockOps(config, weights)) {
        double[][] got = route(ops, hidden, arena);
        double[][] expected = route(truth, hidden, arena);
        assertThat(Samples.relativeL2(expected[0], got[0])).isLessThan(TOLERANCE);
        assertThat(got[1]).isEqualTo(expected[1]);
        assertThat(Samples.relativeL2(expected[2], got[2])).isLessThan(TOLERANCE);
      }
    }
  }

  private static double[][] route(BlockOps ops, Tensor hidden, Arena arena) {
    Workspace ws = workspace(ops, arena);
    Tensor logits = Tensor.of(DType.F32, arena.allocate(4L * TOKENS * 16), TOKENS, 16);
    Tensor ids = Tensor.of(DType.I32, arena.allocate(4L * TOKENS * 2), TOKENS, 2);
    Tensor weights = Tensor.of(DType.F32, arena.allocate(4L * TOKENS * 2), TOKENS, 2);
    ops.routerLogits(hidden, logits, ws, DeviceStream.HOST);
    ops.route(logits, ids, weights, ws, DeviceStream.HOST);
    return new double[][] {logits.toDoubles(), ids.toDoubles(), weights.toDoubles()};
  }

  @Test
  void tiesGoToTheLowestId() {
    try (Arena arena = Arena.ofShared()) {
      MoeConfig config = MoeConfig.builder(8, 8, 16, 2).build();
      MoeLayerWeights weights =
          new MoeLayerWeights(Samples.experts(rnd, arena, config), null, null, null);
      float[] z = new float[TOKENS * 16];
      Arrays.fill(z, 1f);
      try (BlockOps ops = fast(config, weights)) {
        Tensor ids = Tensor.of(DType.I32, arena.allocate(4L * TOKENS * 2), TOKENS, 2);
        Tensor w = Tensor.of(DType.F32, arena.allocate(4L * TOKENS * 2), TOKENS, 2);
        ops.route(Tensor.ofFloats(z, TOKENS, 16), ids, w, workspace(ops, arena), DeviceStream.HOST);
        for (int t = 0; t < TOKENS; t++) {
          assertThat(ids.get(t, 0)).isEqualTo(0);
          assertThat(ids.get(t, 1)).isEqualTo(1);
        }
      }
    }
  }

  static Stream<Arguments> blocks() {
    return onEveryPath(
        Stream.of(
            "plain",
            "shared",
            "gated",
            "latent",
            "latent shared lora",
            "gated lora",
            "averaged",
            "bias",
            "latent averaged bias lora"));
  }

  @ParameterizedTest
  @MethodSource("blocks")
  void finishes(String kind, CpuExpertsTest.Path path) {
    try (Arena arena = Arena.ofShared()) {
      int h = 47;
      int d = kind.contains("latent") ? 21 : 0;
      boolean averaged = kind.contains("averaged");
      boolean shared = kind.contains("shared") || kind.contains("gated") || averaged;
      boolean lora = kind.contains("lora");
      MoeConfig.Builder b = MoeConfig.builder(h, 8, 4, 2).latentSize(d);
      if (shared) {
        b.sharedExpert(
            new SharedExpertConfig(
                70,
                Activation.SILU,
                kind.contains("gated"),
                averaged ? Combine.AVERAGE : Combine.ADD));
      }
      b.outputBias(kind.contains("bias"));
      if (lora) {
        b.lora(new LoraConfig(3, 9));
      }
      MoeConfig config = b.build();
      SharedExpertWeights s =
          new SharedExpertWeights(
              io.moe4j.api.weights.ExpertWeights.Expert.plain(
                  Samples.random(rnd, arena, DType.F16, 0.2, 70, h),
                  Samples.random(rnd, arena, DType.F16, 0.2, 70, h),
                  Samples.random(rnd, arena, DType.F16, 0.2, h, 70)),
              kind.contains("gated") ? Samples.random(rnd, arena, DType.F16, 0.2, 1, h) : null);
      LatentWeights l =
          new LatentWeights(
              Samples.random(rnd, arena, DType.BF16, 0.2, 21, h),
              Samples.random(rnd, arena, DType.BF16, 0.2, h, 21));
      MoeLayerWeights weights =
          new MoeLayerWeights(
              Samples.experts(rnd, arena, config), null, shared ? s : null, d > 0 ? l : null);
      if (kind.contains("bias")) {
        weights = weights.withOutputBias(Samples.random(rnd, arena, DType.BF16, 1, h));
      }
      MoeLoraContext context = lora ? context(arena, h, d) : null;
      Tensor hidden = Samples.random(rnd, arena, DType.BF16, 1, TOKENS, h);
      Tensor routed = Samples.random(rnd, arena, DType.F32, 1, TOKENS, d > 0 ? d : h);
      try (BlockOps ops = fast(config, weights, path);
          BlockOps truth = new ReferenceBlockOps(config, weights)) {
        for (DType type : List.of(DType.F32, DType.BF16, DType.F16)) {
          double half = type == DType.F32 ? 0 : type == DType.BF16 ? 0x1p-8 : 0x1p-11;
          assertThat(
                  Samples.relativeL2(
                      output(truth, hidden, routed, context, DType.F32, arena),
                      output(ops, hidden, routed, context, type, arena)))
              .isLessThan(TOLERANCE + half);
        }
        if (d > 0) {
          assertThat(
                  Samples.relativeL2(
                      latentIn(truth, hidden, context, arena),
                      latentIn(ops, hidden, context, arena)))
              .isLessThan(TOLERANCE);
        }
      }
    }
  }

  static Stream<CpuExpertsTest.Path> paths() {
    return CpuExpertsTest.Path.here().stream();
  }

  @ParameterizedTest
  @MethodSource("paths")
  void rowsInMappedFilesAndABiasInDoubles(CpuExpertsTest.Path path, @TempDir Path dir)
      throws IOException {
    int h = 47;
    int d = 21;
    try (Arena arena = Arena.ofShared()) {
      MoeConfig config = MoeConfig.builder(h, 8, 4, 2).latentSize(d).outputBias(true).build();
      LatentWeights latent =
          new LatentWeights(
              Samples.random(rnd, arena, DType.BF16, 0.2, d, h),
              Samples.random(rnd, arena, DType.BF16, 0.2, h, d));
      MoeLayerWeights weights =
          new MoeLayerWeights(Samples.experts(rnd, arena, config), null, null, latent)
              .withOutputBias(Samples.random(rnd, arena, DType.F64, 1, h));
      Tensor hidden =
          mapped(Samples.random(rnd, arena, DType.BF16, 1, TOKENS, h), dir.resolve("x"), arena);
      Tensor routed =
          mapped(Samples.random(rnd, arena, DType.F32, 1, TOKENS, d), dir.resolve("y"), arena);
      try (BlockOps ops = fast(config, weights, path);
          BlockOps truth = new ReferenceBlockOps(config, weights)) {
        assertThat(
                Samples.relativeL2(
                    output(truth, hidden, routed, null, DType.F32, arena),
                    output(ops, hidden, routed, null, DType.F32, arena)))
            .isLessThan(TOLERANCE);
        assertThat(
                Samples.relativeL2(
                    latentIn(truth, hidden, null, arena), latentIn(ops, hidden, null, arena)))
            .isLessThan(TOLERANCE);
      }
    }
  }

  private static Tensor mapped(Tensor t, Path file, Arena arena) throws IOException {
    MemorySegment from = t.segment();
    try (FileChannel channel =
        FileChannel.open(
            file, StandardOpenOption.CREATE, StandardOpenOption.READ, StandardOpenOption.WRITE)) {
      MemorySegment to =
          channel.map(FileChannel.MapMode.READ_WRITE, 0, from.byteSize(), arena).copyFrom(from);
      return Tensor.of(t.dtype(), to, t.shape());
    }
  }

  private MoeLoraContext context(Arena arena, int h, int d) {
    Map<LoraTarget, LoraFactors> f = new EnumMap<>(LoraTarget.class);
    f.put(LoraTarget.SHARED_GATE, factors(arena, h, 70, 5));
    f.put(LoraTarget.SHARED_UP, factors(arena, h, 70, 9));
    f.put(LoraTarget.SHARED_DOWN, factors(arena, 70, h, 3));
    if (d > 0) {
      f.put(LoraTarget.LATENT_IN, factors(arena, h, d, 4));
      f.put(LoraTarget.LATENT_OUT, factors(arena, d, h, 2));
    } else {
      f.put(LoraTarget.SHARED_EXPERT_GATE, factors(arena, h, 1, 6));
    }
    int[] mapping = new int[TOKENS];
    for (int t = 0; t < TOKENS; t++) {
      mapping[t] = t % 4 - 1;
    }
    LoraLayer down = new LoraLayer(Map.of(LoraTarget.SHARED_DOWN, factors(arena, 70, h, 7)));
    return new Samples.Context(
        Arrays.asList(new LoraLayer(f), null, down), Samples.ints(arena, mapping, TOKENS));
  }

  private LoraFactors factors(Arena arena, int in, int out, int rank) {
    return new LoraFactors(
        Samples.random(rnd, arena, DType.F32, 0.2, 1, rank, in),
        Samples.random(rnd, arena, DType.BF16, 0.4, 1, out, rank));
  }

  private static double[] output(
      BlockOps ops,
      Tensor hidden,
      Tensor routed,
      @Nullable MoeLoraContext lora,
      DType type,
      Arena arena) {
    Tensor out =
        Tensor.of(type, arena.allocate(type.byteSize(hidden.elementCount())), hidden.shape());
    ops.output(hidden, routed, lora, out, workspace(ops, arena), DeviceStream.HOST);
    return out.toDoubles();
  }

  private static double[] latentIn(
      BlockOps ops, Tensor hidden, @Nullable MoeLoraContext lora, Arena arena) {
    Tensor out = Tensor.of(DType.F32, arena.allocate(4L * TOKENS * 21), TOKENS, 21);
    ops.latentIn(hidden, lora, out, workspace(ops, arena), DeviceStream.HOST);
    return out.toDoubles();
  }

  @Test
  void dispatchAndCombine() {
    try (Arena arena = Arena.ofShared()) {
      MoeConfig config = MoeConfig.builder(10, 8, 6, 2).build();
      MoeLayerWeights weights =
          new MoeLayerWeights(Samples.experts(rnd, arena, config), null, null, null);
      int[] ids = new int[TOKENS * 2];
      for (int i = 0; i < ids.length; i++) {
        ids[i] = i % 7 - 1;
      }
      ExpertRouting routing =
          new ExpertRouting(
              Samples.ints(arena, ids, TOKENS, 2),
              Samples.random(rnd, arena, DType.F32, 1, TOKENS, 2),
              null);
      Tensor hidden = Samples.random(rnd, arena, DType.BF16, 1, TOKENS, 10);
      try (BlockOps ops = fast(config, weights);
          BlockOps truth = new ReferenceBlockOps(config, weights)) {
        assertThat(roundTrip(ops, hidden, routing, arena))
            .usingComparatorWithPrecision(1e-5)
            .containsExactly(roundTrip(truth, hidden, routing, arena));
      }
    }
  }

  private static double[] roundTrip(
      BlockOps ops, Tensor hidden, ExpertRouting routing, Arena arena) {
    Workspace ws = workspace(ops, arena);
    Tensor batched = Tensor.of(DType.BF16, arena.allocate(2L * 6 * TOKENS * 10), 6, TOKENS, 10);
    Tensor counts = Tensor.of(DType.I32, arena.allocate(24), 6);
    Tensor mapping = Samples.ints(arena, new int[TOKENS], TOKENS);
    Tensor batchedMapping = Tensor.of(DType.I32, arena.allocate(4L * 6 * TOKENS), 6, TOKENS);
    ops.dispatch(hidden, routing, mapping, batched, counts, batchedMapping, ws, DeviceStream.HOST);
    Tensor out = Tensor.of(DType.F32, arena.allocate(4L * TOKENS * 10), TOKENS, 10);
    ops.combine(batched, routing, out, ws, DeviceStream.HOST);
    return out.toDoubles();
  }
}
