package io.moe4j.backend.cpu;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.ExpertWeights.Expert;
import io.moe4j.api.weights.Packing;
import io.moe4j.api.weights.Weight;
import io.moe4j.reference.Dequantize;
import io.moe4j.reference.ReferenceMoe;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.EnumMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Experts whose weights are quantised, on every set of kernels, against float64. */
class CodedExpertsTest {
  private static final int EXPERTS = 3;
  private static final int TOP_K = 2;

  /** Random layers; a failure's seed makes it again. */
  static IntStream seeds() {
    return IntStream.range(0, 60);
  }

  @ParameterizedTest
  @MethodSource("seeds")
  void equalsFloat64(int seed) {
    try (Arena arena = Arena.ofShared()) {
      Layer layer = new Layer(new Random(seed), arena, DType.F32);
      double[] expected = layer.expected();
      for (CpuExpertsTest.Path path : CpuExpertsTest.Path.here()) {
        double[] got = layer.run(path.with(CpuExpertsTest.team(1 + seed % 2)));
        assertThat(Samples.relativeL2(expected, got))
            .as("%s, %s", path, layer.config.quantSchemes())
            .isLessThan(1e-5);
      }
    }
  }

  /** Units that multiply bf16 take codes exactly, and round the activations. */
  @ParameterizedTest
  @MethodSource("fewSeeds")
  void hiddenStatesOfBf16(int seed) {
    try (Arena arena = Arena.ofShared()) {
      Layer layer = new Layer(new Random(seed), arena, DType.BF16);
      double[] expected = layer.expected();
      for (CpuExpertsTest.Path path : CpuExpertsTest.Path.here()) {
        double[] got = layer.run(path.with(CpuExpertsTest.team(2)));
        assertThat(Samples.relativeL2(expected, got))
            .as("%s, %s", path, layer.config.quantSchemes())
            .isLessThan(2 * 0x1p-8);
      }
    }
  }

  static IntStream fewSeeds() {
    return IntStream.range(1000, 1030);
  }

  /** Nor does doing it again. */
  @ParameterizedTest
  @ValueSource(ints = {2000, 2001, 2002, 2003, 2004, 2005, 2006, 2007})
  void threadsDoNotChangeABit(int seed) {
    try (Arena arena = Arena.ofShared()) {
      DType io = seed % 2 == 0 ? DType.BF16 : DType.F32;
      Layer layer = new Layer(new Random(seed), arena, io, 200);
      for (CpuExpertsTest.Path path : CpuExpertsTest.Path.here()) {
        double[] one = layer.run(path.with(CpuExpertsTest.team(1)));
        for (ThreadTeam team : CpuExpertsTest.teams()) {
          for (int run = 0; run < 2; run++) {
            assertThat(layer.run(path.with(team)))
                .as("%s, %s threads, %s nodes", path, team.size(), team.nodes())
                .isEqualTo(one);
          }
        }
      }
    }
  }

  /** What people run is packed for the kernels in C, whatever the packing it comes in. */
  @Test
  void commonSchemesArePacked() {
    try (Arena arena = Arena.ofShared()) {
      CodedSamples samples = new CodedSamples(new Random(1), arena);
      QuantScheme.Builder fp8 = QuantScheme.builder(QuantScheme.Format.FP8);
      for (QuantScheme scheme :
          List.of(
              QuantScheme.int4(32),
              QuantScheme.int4(128),
              QuantScheme.int4(128).toBuilder().symmetric(false).build(),
              QuantScheme.int4(QuantScheme.ALL),
              QuantScheme.int8(128),
              QuantScheme.int8(QuantScheme.ALL),
              fp8.perTensor().build(),
              fp8.perChannel().build(),
              QuantScheme.FP8_BLOCK,
              QuantScheme.MXFP4,
              QuantScheme.MXFP8,
              QuantScheme.NVFP4)) {
        for (int i = 0; i < 10; i++) {
          Weight w = samples.weight(scheme, 200, 288);
          assertThat(CodedLayout.refusal(List.of(w))).as("%s", w).isEmpty();
          assertThat(CodedLayout.of(w).blockBytes())
              .as("%s", w)
              .isLessThan((long) (1.1 * w.byteSize() / 200 * 32) + 512);
        }
      }
      QuantScheme ordered = QuantScheme.int4(32).toBuilder().actOrder(true).build();
      assertThat(CodedLayout.refusal(List.of(samples.shuffled(ordered, 40, 72)))).isEmpty();
      assertThat(CodedLayout.refusal(List.of(samples.weight(ordered, 40, 256))))
          .contains("no shuffle of its groups");
    }
  }

  /** A code that is not a number makes its output so, and packed blocks cannot say it. */
  @Test
  void codesThatAreNoNumbers() {
    try (Arena arena = Arena.ofShared()) {
      MemorySegment codes = arena.allocate(64 * 64);
      codes.set(ValueLayout.JAVA_BYTE, 64 * 5 + 3, (byte) 0xff);
      Weight up =
          Weight.builder(
                  "up",
                  QuantScheme.FP8_BLOCK,
                  64,
                  64,
                  Tensor.of(DType.F8_E4M3, codes, 64, 64),
                  Packing.DENSE)
              .scales(Tensor.ofFloats(new float[] {1}, 1, 1))
              .build();
      Weight down = Weight.plain(Samples.random(new Random(2), arena, DType.F32, 1, 64, 64));
      MoeConfig config =
          MoeConfig.builder(64, 64, 1, 1)
              .quantSchemes(List.of(QuantScheme.FP8_BLOCK, QuantScheme.NONE))
              .activation(Activation.plain(Activation.Kind.SILU_NO_MUL))
              .build();
      Layer layer =
          new Layer(config, new ExpertWeights(List.of(Expert.of(null, up, down))), 1, arena);
      for (CpuExpertsTest.Path path : CpuExpertsTest.Path.here()) {
        assertThat(layer.run(path.with(CpuExpertsTest.team(1))))
            .as("%s", path)
            .containsOnly(Double.NaN);
      }
    }
  }

  /** A group that reaches beyond the inputs, but not beyond what they are padded to. */
  @ParameterizedTest
  @CsvSource({"17, 31", "17, 17", "33, 50", "36, 40", "45, 45", "70, 95", "31, 40"})
  void groupsThatTakeAllInputs(int in, int group) {
    try (Arena arena = Arena.ofShared()) {
      CodedSamples samples = new CodedSamples(new Random(in), arena);
      for (QuantScheme.Format format :
          List.of(
              QuantScheme.Format.INT4,
              QuantScheme.Format.INT8,
              QuantScheme.Format.FP8,
              QuantScheme.Format.FP4)) {
        QuantScheme scheme = QuantScheme.builder(format).group(group).build();
        MoeConfig config =
            MoeConfig.builder(in, in, 1, 1)
                .quantSchemes(List.of(scheme))
                .activation(Activation.plain(Activation.Kind.SILU))
                .build();
        Expert expert =
            Expert.of(
                samples.weight(scheme, in, in),
                samples.weight(scheme, in, in),
                samples.weight(scheme, in, in));
        assertThat(CodedLayout.refusal(List.of(expert.up()))).isEmpty();
        Layer layer = new Layer(config, new ExpertWeights(List.of(expert)), 5, arena);
        double[] expected = layer.expected();
        for (CpuExpertsTest.Path path : CpuExpertsTest.Path.here()) {
          assertThat(Samples.relativeL2(expected, layer.run(path.with(CpuExpertsTest.team(1)))))
              .as("%s, %s", path, scheme)
              .isLessThan(1e-5);
        }
      }
    }
  }

  /** A layer, a batch and its adapters. */
  private static final class Layer {
    final Arena arena;
    final Random rnd;
    final MoeConfig config;
    final ExpertWeights weights;
    final int tokens;
    final Tensor hidden;
    final Tensor output;
    final ExpertRouting routing;
    final Samples.@Nullable Context lora;

    /** Whether act-order is as files have it, the same for gate and up. */
    final boolean shuffled;

    Layer(Random rnd, Arena arena, DType io) {
      this(rnd, arena, io, 0);
    }

    /** With adapters if the number of tokens is given. */
    Layer(Random rnd, Arena arena, DType io, int givenTokens) {
      this.rnd = rnd;
      this.arena = arena;
      CodedSamples samples = new CodedSamples(rnd, arena);
      // half of the layers have one scheme, as most files have
      boolean uniform = rnd.nextBoolean();
      shuffled = rnd.nextInt(4) > 0;
      QuantScheme w13 = samples.scheme();
      QuantScheme w2 = rnd.nextInt(3) == 0 ? QuantScheme.NONE : uniform ? w13 : samples.scheme();
      int h = 1 + rnd.nextInt(rnd.nextBoolean() ? 70 : 200);
      int i = 1 + rnd.nextInt(rnd.nextBoolean() ? 70 : 200);
      boolean gated = rnd.nextInt(4) > 0;
      List<Expert> experts = new ArrayList<>();
      Set<QuantScheme> schemes = new LinkedHashSet<>();
      for (int e = 0; e < EXPERTS; e++) {
        QuantScheme own = uniform || rnd.nextBoolean() ? w13 : samples.scheme();
        schemes.addAll(List.of(own, w2));
        experts.add(
            Expert.of(
                gated ? weight(samples, own, i, h) : null,
                weight(samples, own, i, h),
                weight(samples, w2, h, i)));
      }
      weights = new ExpertWeights(experts);
      int anyTokens = List.of(1, 2, 7, 15, 50).get(rnd.nextInt(5));
      tokens = givenTokens > 0 ? givenTokens : anyTokens;
      MoeConfig.Builder b =
          MoeConfig.builder(h, i, EXPERTS, TOP_K)
              .quantSchemes(schemes)
              .inputDtype(io)
              .activation(
                  Activation.plain(gated ? Activation.Kind.SILU : Activation.Kind.RELU2_NO_MUL));
      config = (rnd.nextInt(3) == 0 || givenTokens > 0 ? b.lora(new LoraConfig(1, 8)) : b).build();
      hidden = Samples.random(rnd, arena, io, 1, tokens, h);
      output = Samples.random(rnd, arena, DType.F32, 1, tokens, h);
      int[] ids = rnd.ints((long) tokens * TOP_K, 0, EXPERTS).toArray();
      routing =
          new ExpertRouting(
              Samples.ints(arena, ids, tokens, TOP_K),
              Samples.random(rnd, arena, DType.F32, 1, tokens, TOP_K),
              null);
      lora = config.lora().isEmpty() ? null : lora(h, i, gated);
    }

    /** All tokens go to expert 0. */
    Layer(MoeConfig config, ExpertWeights weights, int tokens, Arena arena) {
      this.rnd = new Random(3);
      this.shuffled = false;
      this.arena = arena;
      this.config = config;
      this.weights = weights;
      this.tokens = tokens;
      int h = config.hiddenSize();
      hidden = Samples.random(rnd, arena, DType.F32, 1, tokens, h);
      output = Samples.random(rnd, arena, DType.F32, 1, tokens, h);
      routing =
          new ExpertRouting(
              Samples.ints(arena, new int[tokens], tokens, 1),
              Samples.random(rnd, arena, DType.F32, 1, tokens, 1),
              null);
      lora = null;
    }

    private Weight weight(CodedSamples samples, QuantScheme scheme, int out, int in) {
      return scheme.isNone()
          ? Weight.plain(Samples.random(rnd, arena, DType.BF16, 1 / Math.sqrt(in), out, in))
          : shuffled ? samples.shuffled(scheme, out, in) : samples.weight(scheme, out, in);
    }

    private Samples.Context lora(int h, int i, boolean gated) {
      Map<LoraTarget, LoraFactors> f = new EnumMap<>(LoraTarget.class);
      if (gated) {
        f.put(LoraTarget.GATE, factors(i, h));
      }
      f.put(LoraTarget.UP, factors(i, h));
      f.put(LoraTarget.DOWN, factors(h, i));
      int[] mapping = rnd.ints(tokens, -1, 1).toArray();
      return new Samples.Context(List.of(new LoraLayer(f)), Samples.ints(arena, mapping, tokens));
    }

    private LoraFactors factors(int out, int in) {
      return new LoraFactors(
          Samples.random(rnd, arena, DType.BF16, 1 / Math.sqrt(in), EXPERTS, 8, in),
          Samples.random(rnd, arena, DType.BF16, 0.3, EXPERTS, out, 8));
    }

    double[] run(Mlps mlps) {
      output.segment().fill((byte) 0xff); // NaN, and nothing of another path
      CpuExperts experts = new CpuExperts(config, weights, mlps);
      long bytes = experts.workspaceBytes(tokens);
      MemorySegment ws = arena.allocate(bytes, 64);
      ws.fill((byte) 0x7f);
      experts.apply(
          ExpertsInputs.standard(hidden, routing, output),
          lora,
          new Workspace(new HostMemory(ws)),
          DeviceStream.HOST);
      experts.close();
      return output.toDoubles();
    }

    /** Every element once, by the reference; F32 is fine enough. */
    private static Weight plain(Weight w) {
      int in = Math.toIntExact(w.in());
      float[] all = new float[Math.toIntExact(w.out()) * in];
      for (int o = 0; o < w.out(); o++) {
        double[] row = Dequantize.row(w, o);
        for (int i = 0; i < in; i++) {
          all[o * in + i] = (float) row[i];
        }
      }
      return Weight.plain(Tensor.ofFloats(all, w.out(), in));
    }

    double[] expected() {
      double[] all = new double[Math.toIntExact(output.elementCount())];
      int h = config.hiddenSize();
      ExpertWeights plain =
          new ExpertWeights(
              weights.experts().stream()
                  .map(e ->
                      Expert.of(
                          e.gate() == null ? null : plain(e.gate()),
                          plain(e.up()),
                          plain(e.down())))
                  .toList());
      for (int t = 0; t < tokens; t++) {
        boolean adapted = lora != null && lora.tokenLoraMapping().get(t) == 0;
        LoraLayer layer = adapted && lora != null ? lora.slot(0) : null;
        double[] y =
            ReferenceMoe.experts(config, plain, routing, t, hidden.select(0, t).toDoubles(), layer);
        System.arraycopy(y, 0, all, t * h, h);
      }
      return all;
    }
  }
}
