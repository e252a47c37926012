package io.moe4j.backend.cpu;

import static java.util.Objects.requireNonNull;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.junit.jupiter.api.Assertions.assertTimeoutPreemptively;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.backend.cpu.ffi.Affinity;
import io.moe4j.backend.cpu.ffi.Isa;
import io.moe4j.backend.cpu.ffi.NativeKernels;
import io.moe4j.backend.cpu.kernel.KernelSelection;
import io.moe4j.backend.cpu.kernel.Kernels;
import io.moe4j.backend.cpu.options.PackPolicy;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.EnumMap;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Random;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;

class CpuExpertsTest {
  /** What the project promises for f32 arithmetic. */
  private static final double TOLERANCE = 1e-5;

  record Case(String name, MoeConfig config, int tokens, Lora lora, Routes routes, int threads) {
    @Override
    public String toString() {
      return name;
    }
  }

  /** Whose kernels compute. */
  enum Path {
    VECTOR,
    SCALAR,
    AVX2,
    AVX512,
    AVX512BF16,
    AMX;

    /** {@return the kernels; skips the test where the machine lacks them} */
    Mlps with(ThreadTeam team) {
      return switch (this) {
        case VECTOR -> java(KernelSelection.kernels(), team);
        case SCALAR -> java(KernelSelection.scalar(), team);
        default -> {
          Optional<NativeKernels> c = NativeKernels.of(Isa.valueOf(name()));
          assumeTrue(c.isPresent(), () -> "this machine has no " + name());
          yield new Mlps(KernelSelection.scalar(), c.orElseThrow(), "", PackPolicy.ALWAYS, team);
        }
      };
    }

    /**
     * {@return those to test: all, or those of {@code -Dmoe.cpu.test.paths=VECTOR,SCALAR}} Other
     * runs of this class change what Java does, which kernels in C know nothing of.
     */
    static List<Path> asked() {
      String names = System.getProperty("moe.cpu.test.paths", "");
      return names.isEmpty()
          ? List.of(values())
          : Stream.of(names.split(",")).map(Path::valueOf).toList();
    }

    /** {@return those to test that this machine has} */
    static List<Path> here() {
      return asked().stream()
          .filter(p ->
              p == VECTOR || p == SCALAR || NativeKernels.of(Isa.valueOf(p.name())).isPresent())
          .toList();
    }

    static Mlps java(Kernels kernels, ThreadTeam team) {
      return new Mlps(kernels, null, "a test", PackPolicy.NEVER, team);
    }
  }

  enum Lora {
    NONE,
    /** B as in a file, [out, r]. */
    FILE,
    /** B dense along out. */
    PACKED,
    /** Neither side dense; ranks and targets differ. */
    RAGGED
  }

  enum Routes {
    RANDOM,
    ONE_EXPERT,
    SOME_MISSING
  }

  static Stream<Case> cases() {
    List<Case> all = new ArrayList<>();
    int[][] sizes = {
      {64, 32, 4, 2}, {13, 17, 3, 2}, {207, 1, 2, 1}, {130, 70, 5, 3}, {1, 13, 4, 4}
    };
    int problems = 0;
    for (DType d : new DType[] {DType.F32, DType.BF16, DType.F16}) {
      for (int[] s : sizes) {
        for (int tokens : new int[] {0, 1, 5, 37}) {
          for (Lora lora : Lora.values()) {
            MoeConfig.Builder b = MoeConfig.builder(s[0], s[1], s[2], s[3]).weightDtype(d);
            MoeConfig c = (lora == Lora.NONE ? b : b.lora(new LoraConfig(4, 20))).build();
            Routes r = Routes.values()[problems++ % 3];
            String name = d + " H" + s[0] + " I" + s[1] + " T" + tokens + " " + lora + " " + r;
            all.add(new Case(name, c, tokens, lora, r, 1 + tokens % 3));
          }
        }
      }
    }
    return all.stream();
  }

  @ParameterizedTest
  @MethodSource("cases")
  void equalsFloat64(Case c) {
    check(c.name, c.config, c.tokens, c.lora, c.routes, c.threads, Path.here());
  }

  /** Those that the machine lacks are skipped here, by name. */
  @ParameterizedTest
  @MethodSource("asked")
  void everyPathIsTested(Path path) {
    assertThat(path.with(team(1)).java()).isNotNull();
    assertThat(Path.here()).contains(path);
  }

  static List<Path> asked() {
    return Path.asked();
  }

  @ParameterizedTest
  @EnumSource(Activation.Kind.class)
  void activations(Activation.Kind kind) {
    for (float limit : new float[] {0.7f, Float.POSITIVE_INFINITY}) {
      MoeConfig config =
          MoeConfig.builder(24, 33, 3, 2)
              .weightDtype(DType.F32)
              .expertBias(true)
              .activation(Activation.plain(kind).withLimit(limit))
              .build();
      check(kind.name(), config, 9, Lora.NONE, Routes.RANDOM, 2, Path.here());
    }
  }

  @Test
  void routerWeightOnInput() {
    MoeConfig config =
        MoeConfig.builder(40, 24, 4, 3)
            .weightDtype(DType.BF16)
            .routerWeightOnInput(true)
            .lora(new LoraConfig(4, 20))
            .build();
    check("weight on input", config, 21, Lora.FILE, Routes.RANDOM, 2, Path.here());
  }

  /** More outputs than are expanded at a time, panels of all widths, tails, several groups. */
  @ParameterizedTest
  @EnumSource(Lora.class)
  void adaptersInPanels(Lora lora) {
    for (Activation.Kind kind : List.of(Activation.Kind.SILU, Activation.Kind.RELU2_NO_MUL)) {
      for (int tokens : new int[] {21, 52, 67, 150}) {
        for (int[] s : new int[][] {{1100, 40}, {40, 1100}}) {
          MoeConfig config =
              MoeConfig.builder(s[0], s[1], 2, 1)
                  .weightDtype(DType.BF16)
                  .activation(Activation.plain(kind))
                  .lora(new LoraConfig(4, 20))
                  .build();
          String name = kind + " " + lora + " " + tokens + " " + s[0];
          List<Path> paths = Path.here().stream().filter(p -> p != Path.SCALAR).toList();
          check(name, config, tokens, lora, Routes.ONE_EXPERT, 2, paths);
          check(name, config, 2 * tokens, lora, Routes.SOME_MISSING, 3, paths);
        }
      }
    }
  }

  @Test
  void moreTokensThanOneChunk() {
    MoeConfig config = MoeConfig.builder(8, 4, 3, 3).weightDtype(DType.F32).maxTokens(4000).build();
    check("chunks", config, 4000, Lora.NONE, Routes.SOME_MISSING, 2, Path.here());
  }

  @ParameterizedTest
  @EnumSource(
      value = DType.class,
      names = {"F32", "BF16", "F16"})
  void inputAndOutputDtypes(DType dtype) {
    try (Arena arena = Arena.ofShared()) {
      Random rnd = new Random(5);
      MoeConfig config =
          MoeConfig.builder(48, 32, 3, 2).weightDtype(DType.F32).inputDtype(dtype).build();
      Setup s = new Setup(config, 7, Lora.NONE, Routes.RANDOM, rnd, arena, dtype);
      double[] got = s.run(Path.java(KernelSelection.kernels(), team(2)));
      double tolerance = dtype == DType.F32 ? TOLERANCE : dtype == DType.BF16 ? 0x1p-8 : 0x1p-11;
      assertThat(Samples.relativeL2(s.expected(), got)).isLessThan(tolerance);
    }
  }

  /** Units that multiply bf16 round the activations, as a layer of that dtype may. */
  @ParameterizedTest
  @EnumSource(Lora.class)
  void hiddenStatesOfBf16(Lora lora) {
    for (int[] s : new int[][] {{64, 32}, {130, 70}, {33, 17}, {600, 200}}) {
      for (int tokens : new int[] {1, 3, 16, 17, 40, 150, 300}) {
        MoeConfig config =
            MoeConfig.builder(s[0], s[1], 4, 2)
                .weightDtype(DType.BF16)
                .inputDtype(DType.BF16)
                .expertBias(tokens % 2 == 0)
                .lora(new LoraConfig(4, 20))
                .build();
        try (Arena arena = Arena.ofShared()) {
          Random rnd = new Random(s[0] + tokens);
          Setup setup = new Setup(config, tokens, lora, Routes.RANDOM, rnd, arena, DType.BF16);
          double[] expected = setup.expected();
          for (Path path : Path.here()) {
            double[] got = setup.run(path.with(team(2)));
            assertThat(Samples.relativeL2(expected, got))
                .as("%s %s %s", path, s[0], tokens)
                .isLessThan(2 * 0x1p-8);
          }
        }
      }
    }
  }

  @Test
  void transposedAndInterleavedWeightsAreRead() {
    try (Arena arena = Arena.ofShared()) {
      Random rnd = new Random(6);
      MoeConfig config = MoeConfig.builder(36, 20, 3, 2).weightDtype(DType.BF16).build();
      Setup s = new Setup(config, 9, Lora.NONE, Routes.RANDOM, rnd, arena, DType.F32);
      Tensor w13 = Samples.random(rnd, arena, DType.BF16, 0.2, 3, 36, 40).transpose(1, 2);
      Tensor w2 = Samples.random(rnd, arena, DType.BF16, 0.2, 3, 20, 36).transpose(1, 2);
      s.weights =
          ExpertWeights.ofStacked(
              w13, w2, null, null, true, io.moe4j.api.config.GateUpLayout.INTERLEAVED);
      for (Path path : Path.here()) {
        double[] got = s.run(path.with(team(2)));
        assertThat(Samples.relativeL2(s.expected(), got)).as("%s", path).isLessThan(TOLERANCE);
      }
    }
  }

  /** Teams of several sizes; the last one is split over two nodes that no machine has. */
  static List<ThreadTeam> teams() {
    Affinity.Place near = new Affinity.Place(-1, 0);
    Affinity.Place far = new Affinity.Place(-1, 1);
    return List.of(
        team(1), team(2), team(3), team(5), new ThreadTeam(4, List.of(near, near, far, far)));
  }

  /** Nor does doing it again. Experts with few tokens, with many, and with more than one unit. */
  @ParameterizedTest
  @MethodSource("bits")
  void threadsDoNotChangeABit(DType weights, DType io, int tokens) {
    try (Arena arena = Arena.ofShared()) {
      MoeConfig config =
          MoeConfig.builder(200, 136, 4, 2)
              .weightDtype(weights)
              .inputDtype(io)
              .expertBias(true)
              .lora(new LoraConfig(4, 20))
              .build();
      Setup s = new Setup(config, tokens, Lora.RAGGED, Routes.RANDOM, new Random(7), arena, io);
      for (Path path : Path.here()) {
        double[] one = s.run(path.with(team(1)));
        assertThat(one).as("%s", path).doesNotContain(Double.NaN);
        for (ThreadTeam team : teams()) {
          for (int run = 0; run < 2; run++) {
            assertThat(s.run(path.with(team)))
                .as("%s, %s threads, %s nodes", path, team.size(), team.nodes())
                .isEqualTo(one);
          }
        }
      }
    }
  }

  static Stream<Arguments> bits() {
    return Stream.of(
        Arguments.of(DType.BF16, DType.BF16, 1),
        Arguments.of(DType.BF16, DType.BF16, 33),
        Arguments.of(DType.BF16, DType.F32, 33),
        Arguments.of(DType.F32, DType.F32, 33),
        Arguments.of(DType.BF16, DType.BF16, 700));
  }

  /** What a forward that threw half-way has left behind must not hold up the next one. */
  @Test
  void aForwardAfterOneThatFailed() {
    try (Arena arena = Arena.ofShared()) {
      MoeConfig config =
          MoeConfig.builder(64, 96, 4, 2)
              .weightDtype(DType.BF16)
              .lora(new LoraConfig(4, 20))
              .build();
      Setup s = new Setup(config, 33, Lora.FILE, Routes.RANDOM, new Random(7), arena, DType.F32);
      MoeLoraContext used = requireNonNull(s.context);
      MoeLoraContext lost;
      try (Arena gone = Arena.ofShared()) {
        Setup other =
            new Setup(config, 33, Lora.FILE, Routes.RANDOM, new Random(7), gone, DType.F32);
        lost = requireNonNull(other.context).withTokenLoraMapping(used.tokenLoraMapping());
      }
      int[] none = new int[s.tokens];
      Arrays.fill(none, -1);
      s.context = used.withTokenLoraMapping(Samples.ints(arena, none, s.tokens));
      for (Path path : Path.here()) {
        CpuExperts experts = new CpuExperts(config, s.weights, path.with(team(2)));
        assertThatThrownBy(() -> s.apply(experts, lost)).isInstanceOf(IllegalStateException.class);
        assertTimeoutPreemptively(Duration.ofSeconds(30), () -> s.apply(experts, s.context));
        assertThat(Samples.relativeL2(s.expected(), s.output.toDoubles()))
            .as("%s", path)
            .isLessThan(TOLERANCE);
        experts.close();
      }
    }
  }

  private static void check(
      String name,
      MoeConfig config,
      int tokens,
      Lora lora,
      Routes routes,
      int threads,
      List<Path> paths) {
    try (Arena arena = Arena.ofShared()) {
      Random rnd = new Random(("vector " + name).hashCode());
      Setup s = new Setup(config, tokens, lora, routes, rnd, arena, DType.F32);
      double[] expected = s.expected();
      for (Path path : paths) {
        double[] got = s.run(path.with(team(threads)));
        assertThat(got).as("%s", path).hasSameSizeAs(expected);
        assertThat(Samples.relativeL2(expected, got))
            .as("%s %s, %s tokens", path, name, tokens)
            .isLessThan(TOLERANCE);
      }
    }
  }

  private static final Map<Integer, ThreadTeam> TEAMS = new HashMap<>();

  /** Few teams for many cases: their threads stay. */
  static ThreadTeam team(int threads) {
    return TEAMS.computeIfAbsent(threads, ThreadTeam::new);
  }

  private static final class Setup {
    final MoeConfig config;
    final int tokens;
    final Arena arena;
    final Tensor hidden;
    final Tensor output;
    final ExpertRouting routing;
    @Nullable MoeLoraContext context;
    ExpertWeights weights;

    Setup(
        MoeConfig config, int tokens, Lora lora, Routes routes, Random rnd, Arena arena, DType io) {
      this.config = config;
      this.tokens = tokens;
      this.arena = arena;
      weights = Samples.experts(rnd, arena, config);
      hidden = Samples.random(rnd, arena, io, 1, tokens, config.hiddenSize());
      output = Samples.random(rnd, arena, io, 1, tokens, config.hiddenSize());
      int k = config.topK();
      int[] ids = new int[tokens * k];
      for (int t = 0; t < tokens; t++) {
        for (int j = 0; j < k; j++) {
          int id = (rnd.nextInt(config.numExperts()) + j) % config.numExperts();
          ids[t * k + j] =
              switch (routes) {
                case RANDOM -> id;
                case ONE_EXPERT -> config.numExperts() - 1;
                case SOME_MISSING -> rnd.nextInt(3) == 0 || t == 0 ? -1 : id;
              };
        }
      }
      routing =
          new ExpertRouting(
              Samples.ints(arena, ids, tokens, k),
              Samples.random(rnd, arena, DType.F32, 1, tokens, k),
              null);
      context = lora == Lora.NONE ? null : context(rnd, lora);
    }

    private MoeLoraContext context(Random rnd, Lora kind) {
      List<@Nullable LoraLayer> slots = new ArrayList<>();
      int max = config.lora().orElseThrow().maxLoras();
      for (int s = 0; s < max; s++) {
        slots.add(s == 1 ? null : layer(rnd, kind, s));
      }
      int[] mapping = new int[tokens];
      for (int t = 0; t < tokens; t++) {
        mapping[t] = rnd.nextInt(max + 1) - 1;
      }
      return new Samples.Context(slots, Samples.ints(arena, mapping, tokens));
    }

    private LoraLayer layer(Random rnd, Lora kind, int slot) {
      Map<LoraTarget, LoraFactors> f = new EnumMap<>(LoraTarget.class);
      int h = config.hiddenSize();
      int i = config.intermediateSize();
      int rank = kind == Lora.RAGGED ? 1 + 7 * slot % 20 : 16;
      DType d = slot == 0 ? DType.F32 : config.weightDtype();
      Tensor sharedA = a(rnd, kind, d, rank, h);
      if (kind != Lora.RAGGED || slot != 2) {
        f.put(LoraTarget.GATE, new LoraFactors(sharedA, b(rnd, kind, d, i, rank)));
        f.put(LoraTarget.UP, new LoraFactors(sharedA, b(rnd, kind, d, i, rank)));
      } else {
        f.put(LoraTarget.UP, new LoraFactors(a(rnd, kind, d, 3, h), b(rnd, kind, d, i, 3)));
      }
      if (kind != Lora.RAGGED || slot != 3) {
        f.put(LoraTarget.DOWN, new LoraFactors(a(rnd, kind, d, rank, i), b(rnd, kind, d, h, rank)));
      }
      return new LoraLayer(f);
    }

    private Tensor a(Random rnd, Lora kind, DType d, int rank, int in) {
      int e = config.numExperts();
      double scale = 1 / Math.sqrt(in);
      return kind == Lora.RAGGED
          ? Samples.random(rnd, arena, d, scale, e, in, rank).transpose(1, 2)
          : Samples.random(rnd, arena, d, scale, e, rank, in);
    }

    private Tensor b(Random rnd, Lora kind, DType d, int out, int rank) {
      int e = config.numExperts();
      return switch (kind) {
        case PACKED -> Samples.random(rnd, arena, d, 0.3, e, rank, out).transpose(1, 2);
        case RAGGED ->
            Samples.random(rnd, arena, d, 0.3, out, rank, e).transpose(0, 2).transpose(1, 2);
        default -> Samples.random(rnd, arena, d, 0.3, e, out, rank);
      };
    }

    double[] run(Mlps mlps) {
      output.segment().fill((byte) 0xff); // NaN, and nothing of another path
      CpuExperts experts = new CpuExperts(config, weights, mlps);
      apply(experts, context);
      experts.close();
      experts.close();
      return output.toDoubles();
    }

    void apply(CpuExperts experts, @Nullable MoeLoraContext adapters) {
      long bytes = experts.workspaceBytes(Math.max(1, tokens));
      MemorySegment ws = arena.allocate(bytes + 64, 64);
      ws.fill((byte) 0x7f);
      experts.apply(
          ExpertsInputs.standard(hidden, routing, output),
          adapters,
          new Workspace(new HostMemory(ws.asSlice(0, bytes))),
          DeviceStream.HOST);
    }

    double[] expected() {
      Samples.Doubles d = new Samples.Doubles();
      int h = config.hiddenSize();
      double[] out = new double[tokens * h];
      for (int t = 0; t < tokens; t++) {
        LoraLayer layer = null;
        if (context != null) {
          int slot = (int) context.tokenLoraMapping().get(t);
          layer = slot < 0 ? null : context.slot(slot);
        }
        for (int k = 0; k < config.topK(); k++) {
          int e = (int) routing.topkIds().get(t, k);
          if (e < 0) {
            continue;
          }
          double weight = routing.topkWeights().get(t, k);
          double[] x = new double[h];
          for (int i = 0; i < h; i++) {
            x[i] = hidden.get(t, i) * (config.routerWeightOnInput() ? weight : 1);
          }
          double[] y = Samples.expert(d, config.activation(), weights.expert(e), layer, e, x);
          for (int i = 0; i < h; i++) {
            out[t * h + i] += y[i] * (config.routerWeightOnInput() ? 1 : weight);
          }
        }
      }
      return out;
    }
  }
}
