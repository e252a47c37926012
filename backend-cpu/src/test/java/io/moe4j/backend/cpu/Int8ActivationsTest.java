package io.moe4j.backend.cpu;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.ActivationQuant;
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
import io.moe4j.api.weights.Weight;
import io.moe4j.backend.cpu.ffi.Isa;
import io.moe4j.backend.cpu.ffi.NativeKernels;
import io.moe4j.backend.cpu.kernel.KernelSelection;
import io.moe4j.backend.cpu.options.ActivationPolicy;
import io.moe4j.backend.cpu.options.CpuOptions;
import io.moe4j.backend.cpu.options.PackPolicy;
import io.moe4j.reference.ReferenceMoe;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.EnumMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Random;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * Rows of int8 against float64 with the same rows, on every instruction set that multiplies them.
 */
class Int8ActivationsTest {
  private static final int EXPERTS = 3;
  private static final int TOP_K = 2;

  static IntStream seeds() {
    return IntStream.range(0, 40);
  }

  private static List<NativeKernels> kernels() {
    List<NativeKernels> all =
        Arrays.stream(Isa.values())
            .map(NativeKernels::of)
            .flatMap(Optional::stream)
            .filter(NativeKernels::multipliesInt8)
            .toList();
    assumeTrue(!all.isEmpty(), "no units here that multiply int8");
    return all;
  }

  private static Mlps mlps(NativeKernels kernels, ActivationPolicy policy, int threads) {
    return new Mlps(
        KernelSelection.scalar(), kernels, "", PackPolicy.ALWAYS, new ThreadTeam(threads), policy);
  }

  @ParameterizedTest
  @MethodSource("seeds")
  void equalsFloat64WithQuantisedActivations(int seed) {
    List<NativeKernels> kernels = kernels();
    try (Arena arena = Arena.ofShared()) {
      Layer layer = new Layer(new Random(seed), arena);
      double[] expected = layer.expected(true);
      double[] unquantised = layer.expected(false);
      for (NativeKernels k : kernels) {
        double[] got = layer.run(mlps(k, ActivationPolicy.INT8, 1 + seed % 2));
        double error = Samples.relativeL2(expected, got);
        // A sum of f32 may land on the other side of a rounding boundary: one code of one row.
        assertThat(error).as("%s, %s", k.isa(), layer.config.quantSchemes()).isLessThan(1e-3);
        assertThat(Samples.relativeL2(unquantised, got)).isGreaterThan(5 * error);
        assertThat(layer.run(mlps(k, ActivationPolicy.INT8, 2))).isEqualTo(got);
      }
    }
  }

  /** Off unless asked for. */
  @Test
  void activationsStayAsTheyAreUnasked() {
    assertThat(CpuOptions.DEFAULT.activations()).isEqualTo(ActivationPolicy.UNQUANTISED);
    List<NativeKernels> kernels = kernels();
    try (Arena arena = Arena.ofShared()) {
      Layer layer = new Layer(new Random(1), arena);
      for (NativeKernels k : kernels) {
        Mlps mlps = new Mlps(KernelSelection.scalar(), k, "", PackPolicy.ALWAYS, new ThreadTeam(1));
        assertThat(Samples.relativeL2(layer.expected(false), layer.run(mlps))).isLessThan(1e-5);
      }
    }
  }

  @Test
  void descriptionsSayIt() {
    assertThat(KernelChoice.describe(ActivationPolicy.UNQUANTISED, true)).isEmpty();
    assertThat(KernelChoice.describe(ActivationPolicy.INT8, true)).contains("int8 activations");
    assertThat(KernelChoice.describe(ActivationPolicy.INT8, false))
        .contains("unquantised")
        .contains("VNNI");
    CpuOptions int8 = CpuOptions.DEFAULT.withActivations(ActivationPolicy.INT8);
    assertThat(KernelChoice.of(int8).description(int8.activations())).contains("activations");
  }

  /**
   * A row with a number that is none is all NaN; a row of zeros stays one; others are untouched.
   */
  @Test
  void rowsThatAreNotFinite() {
    List<NativeKernels> kernels = kernels();
    try (Arena arena = Arena.ofShared()) {
      Layer layer = new Layer(new Random(5), arena, QuantScheme.int4(32), QuantScheme.int4(32), 4);
      layer.hidden.set(Double.NaN, 0, 3);
      layer.hidden.set(Double.POSITIVE_INFINITY, 1, 5);
      for (int i = 0; i < layer.hidden.size(1); i++) {
        layer.hidden.set(0, 2, i);
      }
      int h = Math.toIntExact(layer.hidden.size(1));
      for (NativeKernels k : kernels) {
        double[] got = layer.run(mlps(k, ActivationPolicy.INT8, 1));
        assertThat(Arrays.copyOfRange(got, 0, 2 * h)).containsOnly(Double.NaN);
        assertThat(Arrays.copyOfRange(got, 2 * h, 3 * h)).containsOnly(0.0);
        assertThat(Arrays.stream(got, 3 * h, 4 * h).allMatch(Double::isFinite)).isTrue();
      }
    }
  }

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

    Layer(Random rnd, Arena arena) {
      this(rnd, arena, scheme(rnd), scheme(rnd), List.of(1, 2, 7, 20, 50).get(rnd.nextInt(5)));
    }

    Layer(Random rnd, Arena arena, QuantScheme w13, QuantScheme w2, int tokens) {
      this.rnd = rnd;
      this.arena = arena;
      this.tokens = tokens;
      w13 = w13.toBuilder().activations(ActivationQuant.INT8_PER_TOKEN).build();
      w2 = w2.toBuilder().activations(ActivationQuant.INT8_PER_TOKEN).build();
      CodedSamples samples = new CodedSamples(rnd, arena);
      int h = 20 + rnd.nextInt(200);
      int i = 20 + rnd.nextInt(200);
      boolean gated = rnd.nextInt(4) > 0;
      List<Expert> experts = new ArrayList<>();
      Weight up = samples.shuffled(w13, i, h);
      Weight down = samples.shuffled(w2, h, i);
      for (int e = 0; e < EXPERTS; e++) {
        experts.add(
            Expert.of(gated ? alike(samples, up) : null, alike(samples, up), alike(samples, down)));
      }
      weights = new ExpertWeights(experts);
      MoeConfig.Builder b =
          MoeConfig.builder(h, i, EXPERTS, TOP_K)
              .quantSchemes(w13.equals(w2) ? List.of(w13) : List.of(w13, w2))
              .quantizedActivations(true)
              .inputDtype(DType.F32)
              .activation(
                  Activation.plain(gated ? Activation.Kind.SILU : Activation.Kind.RELU2_NO_MUL));
      config = (rnd.nextInt(3) == 0 ? b.lora(new LoraConfig(1, 8)) : b).build();
      hidden = Samples.random(rnd, arena, DType.F32, 1, tokens, h);
      output = Samples.random(rnd, arena, DType.F32, 1, tokens, h);
      int[] ids = rnd.ints((long) tokens * TOP_K, 0, EXPERTS).toArray();
      routing =
          new ExpertRouting(
              Samples.ints(arena, ids, tokens, TOP_K),
              Samples.random(rnd, arena, DType.F32, 1, tokens, TOP_K),
              null);
      lora = config.lora().isEmpty() ? null : lora(h, i, gated);
    }

    /** Another matrix, stored as a first one is: the kernels in C refuse others. */
    private static Weight alike(CodedSamples samples, Weight first) {
      while (true) {
        Weight w =
            samples.shuffled(
                first.scheme(), Math.toIntExact(first.out()), Math.toIntExact(first.in()));
        if (CodedLayout.of(w).equals(CodedLayout.of(first))
            && CodedLayout.refusal(List.of(w)).isEmpty()) {
          return w;
        }
      }
    }

    private static QuantScheme scheme(Random rnd) {
      int group =
          List.of(16, 32, 32, 64, 128, QuantScheme.ALL, QuantScheme.ALL).get(rnd.nextInt(7));
      QuantScheme s = rnd.nextBoolean() ? QuantScheme.int4(group) : QuantScheme.int8(group);
      return s.toBuilder()
          .symmetric(rnd.nextInt(3) > 0)
          .actOrder(group != QuantScheme.ALL && rnd.nextInt(3) == 0)
          .build();
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
      CpuExperts experts = new CpuExperts(config, weights, mlps);
      MemorySegment ws = arena.allocate(experts.workspaceBytes(tokens), 64);
      ws.fill((byte) 0x7f);
      experts.apply(
          ExpertsInputs.standard(hidden, routing, output),
          lora,
          new Workspace(new HostMemory(ws)),
          DeviceStream.HOST);
      experts.close();
      return output.toDoubles();
    }

    double[] expected(boolean quantised) {
      MoeConfig as = config.toBuilder().quantizedActivations(quantised).build();
      double[] all = new double[Math.toIntExact(output.elementCount())];
      int h = config.hiddenSize();
      for (int t = 0; t < tokens; t++) {
        boolean adapted = lora != null && lora.tokenLoraMapping().get(t) == 0;
        LoraLayer layer = adapted && lora != null ? lora.slot(0) : null;
        double[] y =
            ReferenceMoe.experts(as, weights, routing, t, hidden.select(0, t).toDoubles(), layer);
        System.arraycopy(y, 0, all, t * h, h);
      }
      return all;
    }
  }
}
