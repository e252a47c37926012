package io.moe4j.backend.cpu;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.SharedExpertConfig;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.spi.Fact;
import io.moe4j.api.spi.ModularExperts;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.SharedExpertWeights;
import io.moe4j.api.weights.Weight;
import io.moe4j.backend.cpu.ffi.Isa;
import io.moe4j.backend.cpu.ffi.NativeKernels;
import io.moe4j.backend.cpu.options.ActivationPolicy;
import io.moe4j.backend.cpu.options.CpuKernels;
import io.moe4j.backend.cpu.options.CpuOptions;
import io.moe4j.backend.cpu.options.CpuProperties;
import io.moe4j.backend.cpu.options.PackPolicy;
import java.lang.foreign.Arena;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.function.Function;
import java.util.stream.Collectors;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Options of a layer: what they say is what it does, and what it says of itself. */
class CpuOptionsTest {
  private static final int TOKENS = 3;
  private static final MoeConfig CONFIG =
      MoeConfig.builder(64, 96, 4, 2).weightDtype(DType.BF16).maxTokens(TOKENS).build();

  /** Of w13 and w2 in BF16; widths are whole blocks. */
  private static final long BYTES = 4L * 3 * 64 * 96 * 2;

  @Test
  void areValues() {
    CpuOptions o =
        CpuOptions.DEFAULT
            .withKernels(CpuKernels.AVX2)
            .withPack(PackPolicy.NEVER)
            .withActivations(ActivationPolicy.INT8)
            .withThreads(3)
            .withPinned(true);
    assertThat(o)
        .hasToString("cpu(kernels avx2, pack never, activations int8, threads 3, pinned)")
        .isEqualTo(o.withThreads(4).withThreads(3))
        .hasSameHashCodeAs(o.withThreads(4).withThreads(3))
        .isNotEqualTo(o.withThreads(4))
        .isNotEqualTo(o.withPinned(false))
        .isNotEqualTo(o.withPack(PackPolicy.AUTO))
        .isNotEqualTo(o.withKernels(CpuKernels.AUTO))
        .isNotEqualTo(o.withActivations(ActivationPolicy.UNQUANTISED));
    assertThat(CpuOptions.DEFAULT)
        .hasToString("cpu(kernels auto, pack auto, activations unquantised, threads auto)");
    assertThat(o.backend()).isEqualTo(CpuExpertsBackend.NAME);
    MoeConfig with = CONFIG.toBuilder().options(CpuOptions.DEFAULT).options(o).build();
    assertThat(CpuProperties.read().options(with)).isEqualTo(o);
    assertThat(CpuProperties.read().options(CONFIG)).isEqualTo(CpuOptions.DEFAULT);
  }

  @ParameterizedTest
  @ValueSource(ints = {-1, 1025, Integer.MAX_VALUE, Integer.MIN_VALUE})
  void aNumberOfThreadsThatCannotBeIsAnError(int threads) {
    assertThatThrownBy(() -> CpuOptions.DEFAULT.withThreads(threads))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessage(
            "threads is "
                + threads
                + ", must be 1..1024, or 0 for as many as there are processors");
  }

  /** A set of kernels that no option names could not be asked for. */
  @Test
  void everyInstructionSetHasAnOption() {
    assertThat(
            Arrays.stream(CpuKernels.values())
                .filter(CpuKernels::isInstructionSet)
                .map(CpuKernels::name))
        .containsExactlyElementsOf(Arrays.stream(Isa.values()).map(Isa::name).toList());
  }

  /** Every set of kernels computes the same layer, and says its name and the bytes that it took. */
  @ParameterizedTest
  @EnumSource(CpuKernels.class)
  void kernels(CpuKernels which) {
    CpuOptions options = CpuOptions.DEFAULT.withKernels(which).withThreads(2);
    Run run = new Run(options, CONFIG);
    boolean isa = which.isInstructionSet();
    boolean c = isa ? NativeKernels.of(Isa.valueOf(which.name())).isPresent() : cByDefault(which);
    Fact weights = run.facts.get("weights");
    if (c) {
      assertThat(run.text("kernels")).startsWith("C kernels, ");
      assertThat(weights.text()).startsWith("packed for these kernels (pack = auto)");
      assertThat(weights.bytes()).isEqualTo(BYTES);
    } else {
      assertThat(run.text("kernels")).contains("(not those in C: ").doesNotContain("()");
      assertThat(weights).isEqualTo(Fact.of("weights", "in place"));
    }
    if (isa) {
      assertThat(run.text("kernels")).contains(Isa.valueOf(which.name()).title());
    }
    if (which == CpuKernels.SCALAR) {
      assertThat(run.text("kernels")).startsWith("scalar (not those in C: scalar ones are asked");
    }
    assertThat(run.text("threads")).isEqualTo("2");
    assertThat(Samples.relativeL2(new Run(CpuOptions.DEFAULT, CONFIG).output, run.output))
        .isLessThan(1e-5);
  }

  private static boolean cByDefault(CpuKernels which) {
    return which == CpuKernels.AUTO && NativeKernels.best().kernels() != null;
  }

  @Test
  void packing() {
    assumeTrue(NativeKernels.best().kernels() != null, () -> NativeKernels.best().reason());
    Run never = new Run(CpuOptions.DEFAULT.withPack(PackPolicy.NEVER), CONFIG);
    assertThat(never.text("kernels")).contains("(not those in C: packing is switched off)");
    assertThat(never.facts.get("weights").bytes()).isZero();
    Run always = new Run(CpuOptions.DEFAULT.withPack(PackPolicy.ALWAYS), CONFIG);
    assertThat(always.text("weights")).contains("(pack = always)");
    assertThat(always.facts.get("weights").bytes()).isEqualTo(BYTES);
    assertThat(Samples.relativeL2(never.output, always.output)).isLessThan(1e-5);
  }

  /** Whoever asks for int8 and does not get it is told. */
  @Test
  void int8ActivationsOfPlainWeights() {
    CpuOptions options = CpuOptions.DEFAULT.withActivations(ActivationPolicy.INT8);
    for (PackPolicy pack : PackPolicy.values()) {
      assertThat(new Run(options.withPack(pack), CONFIG).text("kernels"))
          .contains(", activations unquantised: int8 takes int4 or int8 weights");
    }
  }

  /** More than any machine has. */
  @Test
  void automaticLeavesRoom() {
    assumeTrue(MemoryRoom.availableBytes() < Long.MAX_VALUE, "the system does not say");
    assertThat(MemoryRoom.refusal(PackPolicy.AUTO, 1)).isEmpty();
    assertThat(MemoryRoom.refusal(PackPolicy.AUTO, 1L << 55))
        .startsWith("packed weights would take 33554432.0 GiB of ")
        .endsWith(" that are available (pack = always packs all the same)");
    assertThat(MemoryRoom.refusal(PackPolicy.ALWAYS, 1L << 55)).isEmpty();
    assertThat(MemoryRoom.refusal(PackPolicy.NEVER, 1)).isEqualTo("packing is switched off");
  }

  /** Where the machine has units for it; elsewhere the layer says that it does not. */
  @Test
  void int8Activations() {
    MoeConfig config = MoeConfig.builder(128, 128, 2, 1).quantScheme(QuantScheme.int4(32)).build();
    boolean units = KernelChoice.of(CpuOptions.DEFAULT).multipliesInt8();
    try (Arena arena = Arena.ofShared()) {
      Weight w = new CodedSamples(new Random(1), arena).weight(QuantScheme.int4(32), 128, 128);
      ExpertWeights.Expert e = ExpertWeights.Expert.of(w, w, w);
      ExpertWeights weights = new ExpertWeights(List.of(e, e));
      for (ActivationPolicy policy : ActivationPolicy.values()) {
        MoeConfig own =
            config.toBuilder().options(CpuOptions.DEFAULT.withActivations(policy)).build();
        try (var experts =
            new CpuExpertsBackend().prepare(own, weights, new CpuDeviceProvider().open(0))) {
          String kernels = experts.facts().getFirst().text();
          boolean asked = policy == ActivationPolicy.INT8;
          assertThat(kernels.contains("int8 activations")).isEqualTo(asked && units);
          assertThat(kernels.contains("activations unquantised")).isEqualTo(asked && !units);
        }
      }
    }
  }

  /** The shared expert is packed, too. */
  @Test
  void theSharedExpertHasAFact() {
    assumeTrue(NativeKernels.best().kernels() != null, () -> NativeKernels.best().reason());
    MoeConfig config =
        CONFIG.toBuilder()
            .sharedExpert(new SharedExpertConfig(96, CONFIG.activation(), false))
            .options(CpuOptions.DEFAULT.withThreads(2))
            .build();
    try (Arena arena = Arena.ofShared()) {
      ExpertWeights e = Samples.experts(new Random(3), arena, CONFIG);
      MoeLayerWeights weights =
          new MoeLayerWeights(e, null, new SharedExpertWeights(e.expert(0), null), null);
      try (BlockOps block =
          new CpuBlockOpsProvider().prepare(config, weights, new CpuDeviceProvider().open(0))) {
        assertThat(block.facts())
            .singleElement()
            .satisfies(f -> {
              assertThat(f.name()).isEqualTo("shared");
              assertThat(f.text()).startsWith("C kernels, ").contains("packed for these kernels");
              assertThat(f.bytes()).isEqualTo(BYTES / 4);
            });
      }
      try (BlockOps none =
          new CpuBlockOpsProvider()
              .prepare(
                  CONFIG,
                  new MoeLayerWeights(e, null, null, null),
                  new CpuDeviceProvider().open(0))) {
        assertThat(none.facts()).isEmpty();
      }
    }
  }

  /** A layer with options, prepared and run once. */
  private static final class Run {
    final Map<String, Fact> facts;
    final double[] output;

    Run(CpuOptions options, MoeConfig plain) {
      MoeConfig config = plain.toBuilder().options(options).build();
      try (Arena arena = Arena.ofShared();
          ModularExperts experts =
              (ModularExperts)
                  new CpuExpertsBackend()
                      .prepare(
                          config,
                          Samples.experts(new Random(5), arena, plain),
                          new CpuDeviceProvider().open(0))) {
        facts = experts.facts().stream().collect(Collectors.toMap(Fact::name, Function.identity()));
        Random random = new Random(6);
        Tensor hidden = Samples.random(random, arena, DType.F32, 1, TOKENS, 64);
        Tensor out = Samples.random(random, arena, DType.F32, 1, TOKENS, 64);
        experts.apply(
            ExpertsInputs.standard(
                hidden,
                new ExpertRouting(
                    Samples.ints(arena, new int[] {0, 1, 2, 3, 1, 3}, TOKENS, 2),
                    Samples.random(random, arena, DType.F32, 1, TOKENS, 2),
                    null),
                out),
            null,
            new Workspace(new HostMemory(arena.allocate(experts.workspaceBytes(TOKENS), 64))),
            DeviceStream.HOST);
        output = out.toDoubles();
      }
    }

    String text(String name) {
      return facts.get(name).text();
    }
  }
}
