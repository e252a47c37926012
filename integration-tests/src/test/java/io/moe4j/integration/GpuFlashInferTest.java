package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.junit.jupiter.api.Assumptions.assumeTrue;
import static org.junit.jupiter.api.DynamicTest.dynamicTest;

import io.moe4j.api.config.ActivationQuant;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.Support;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.Packing;
import io.moe4j.api.weights.Weight;
import io.moe4j.backend.cpu.CpuBlockOpsProvider;
import io.moe4j.backend.cpu.CpuDeviceProvider;
import io.moe4j.backend.cpu.reference.CpuReferenceBackend;
import io.moe4j.backend.flashinfer.FlashInferCutlassBackend;
import io.moe4j.backend.triton.TritonBackend;
import io.moe4j.cuda.CudaDeviceProvider;
import io.moe4j.cuda.ops.CudaBlockOpsProvider;
import io.moe4j.lora.AdapterRegistry;
import io.moe4j.oracle.BackendCatalog;
import io.moe4j.oracle.MoeLayer;
import io.moe4j.oracle.MoeOracle;
import io.moe4j.tck.GpuTest;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestFactory;

/**
 * {@code flashinfer-cutlass} in whole layers, with the FlashInfer that is installed: recorded
 * outputs without adapters, and which backend the oracle takes when there are some.
 */
@GpuTest
class GpuFlashInferTest {
  private static final double TOLERANCE = 1e-2;
  private static final double UNDECIDED = 4e-3;

  /**
   * Activations between both products become e4m3 numbers, of 2 to 3 significant digits in binary:
   * where bf16 and float64 fall on both sides of a tie, the code is another, 6 % off.
   */
  private static final double FP8_TOLERANCE = 3e-2;

  private static MoeConfig.Builder layer() {
    return MoeConfig.builder(128, 64, 4, 2).inputDtype(DType.BF16).weightDtype(DType.BF16);
  }

  private static MoeOracle oracle() {
    return MoeOracle.of(
        BackendCatalog.of(
            List.of(new FlashInferCutlassBackend(), new TritonBackend()),
            List.of(new CudaDeviceProvider()),
            List.of(new CudaBlockOpsProvider())));
  }

  private static Platform platform(Device device) {
    return new Platform(List.of(device.info()), Map.of());
  }

  @BeforeEach
  void needsFlashInfer() {
    MoeConfig c = layer().build();
    try (Device device = new CudaDeviceProvider().open(0)) {
      Support answer = new FlashInferCutlassBackend().isSupportedConfig(c, platform(device));
      assumeTrue(answer.equals(Support.yes()), answer.toString());
    }
  }

  @TestFactory
  Stream<DynamicTest> recordedOutputs() {
    return Fixture.names().stream()
        .filter(name -> !name.startsWith("quantised/") || name.equals("quantised/ct_mxfp4"))
        .map(name -> dynamicTest(name, () -> check(name)));
  }

  private static void check(String name) {
    int served = 0;
    try (Fixture fixture = Fixture.open(name);
        Device device = new CudaDeviceProvider().open(0);
        AdapterRegistry none = fixture.registryOn(device);
        MoeOracle oracle = oracle()) {
      for (int index : fixture.checkpoint.layers()) {
        MoeConfig config =
            fixture.checkpoint.config(index).toBuilder()
                .inputDtype(DType.BF16)
                .weightDtype(DType.BF16)
                .build();
        if (new FlashInferCutlassBackend().isSupportedConfig(config, platform(device))
                instanceof Support.No
            || new CudaBlockOpsProvider().isSupportedConfig(config) instanceof Support.No) {
          continue;
        }
        MoeLayerWeights weights = fixture.checkpoint.weights(index);
        compare(fixture, index, config, weights, weights, none, device, oracle, TOLERANCE);
        served++;
      }
    }
    assumeTrue(served > 0, "flashinfer-cutlass serves no layer of " + name);
  }

  private static void compare(
      Fixture fixture,
      int index,
      MoeConfig config,
      MoeLayerWeights weights,
      MoeLayerWeights asComputed,
      AdapterRegistry none,
      Device device,
      MoeOracle oracle,
      double tolerance) {
    try (MoeLayer layer =
        MoeLayer.builder(config, weights)
            .oracle(oracle)
            .backend("flashinfer-cutlass")
            .device(device)
            .build()) {
      LayerCheck check =
          new LayerCheck(
              fixture, index, "flashinfer-cutlass", DType.BF16, tolerance, UNDECIDED, null);
      int tokens = (int) check.golden("input").size(0);
      float[] got = check.run(layer, none, Collections.nCopies(tokens, (String) null), true);
      check.close("output.base", wide(got), expected(check, config, asComputed, tokens));
    }
  }

  /**
   * FP8 with stored input scales. The module has one scale for gate and up of an expert, and one
   * input scale for all experts; the recorded outputs have one for each map. So the reference
   * computes the layer that the module computes.
   */
  @Test
  void fp8WithStoredInputScales() {
    String name = "quantised/ct_fp8_tensor_static";
    try (Fixture fixture = Fixture.open(name);
        Device device = new CudaDeviceProvider().open(0);
        AdapterRegistry none = fixture.registryOn(device);
        MoeOracle oracle = oracle()) {
      for (int index : fixture.checkpoint.layers()) {
        MoeConfig config =
            fixture.checkpoint.config(index).toBuilder()
                .inputDtype(DType.BF16)
                .weightDtype(DType.BF16)
                .quantizedActivations(true)
                .build();
        MoeLayerWeights weights = fixture.checkpoint.weights(index);
        compare(
            fixture,
            index,
            config,
            weights,
            weights.withExperts(unified(weights.experts())),
            none,
            device,
            oracle,
            FP8_TOLERANCE);
      }
    }
  }

  /**
   * Gate and up of an expert under the larger of their scales, all under the largest input scale.
   */
  private static ExpertWeights unified(ExpertWeights experts) {
    float input = 0;
    for (ExpertWeights.Expert e : experts.experts()) {
      for (Weight w : List.of(Objects.requireNonNull(e.gate()), e.up())) {
        input = Math.max(input, number(w.inputScale().orElseThrow()));
      }
    }
    List<ExpertWeights.Expert> all = new ArrayList<>();
    for (ExpertWeights.Expert e : experts.experts()) {
      Weight gate = Objects.requireNonNull(e.gate());
      float scale =
          Math.max(number(gate.scales().orElseThrow()), number(e.up().scales().orElseThrow()));
      all.add(
          ExpertWeights.Expert.of(
              coded(gate, scale, input), coded(e.up(), scale, input), e.down()));
    }
    return new ExpertWeights(all);
  }

  private static float number(Tensor one) {
    return one.toFloats()[0];
  }

  /** The nearest codes under another scale; of two as near the even one. */
  private static Weight coded(Weight w, float scale, float inputScale) {
    Tensor every = Tensor.of(DType.F8_E4M3, MemorySegment.ofArray(allBytes()), 1 << Byte.SIZE);
    Tensor stored = w.values();
    byte[] codes = new byte[Math.toIntExact(stored.elementCount())];
    float own = number(w.scales().orElseThrow());
    for (int i = 0; i < codes.length; i++) {
      double wanted = stored.get(i / w.in(), i % w.in()) * own / scale;
      int best = 0;
      for (int code = 0; code < every.elementCount(); code++) {
        double nearer = Math.abs(every.get(best) - wanted) - Math.abs(every.get(code) - wanted);
        if (nearer > 0 || (nearer == 0 && code % 2 == 0 && best % 2 != 0)) {
          best = code;
        }
      }
      codes[i] = (byte) best;
    }
    return Weight.builder(
            w.name(),
            w.scheme(),
            w.out(),
            w.in(),
            Tensor.of(DType.F8_E4M3, MemorySegment.ofArray(codes), w.out(), w.in()),
            Packing.DENSE)
        .scales(Tensor.ofFloats(new float[] {scale}, 1, 1))
        .inputScale(Tensor.ofFloats(new float[] {inputScale}, 1))
        .build();
  }

  private static byte[] allBytes() {
    byte[] all = new byte[1 << Byte.SIZE];
    for (int i = 0; i < all.length; i++) {
      all[i] = (byte) i;
    }
    return all;
  }

  /**
   * What was recorded; of a sparse mixer, whose masks are thresholds, and of quantised weights, the
   * reference's output.
   */
  private static double[] expected(
      LayerCheck check, MoeConfig config, MoeLayerWeights weights, int tokens) {
    if (config.routing().scoring() != RoutingConfig.Scoring.SPARSE_MIXER && !config.isQuantized()) {
      return check.golden("output.base").toDoubles();
    }
    try (MoeOracle host =
            MoeOracle.of(
                BackendCatalog.of(
                    List.of(new CpuReferenceBackend()),
                    List.of(new CpuDeviceProvider()),
                    List.of(new CpuBlockOpsProvider())));
        MoeLayer truth = MoeLayer.builder(config, weights).oracle(host).build()) {
      return wide(
          check.run(
              truth, check.fixture().registry, Collections.nCopies(tokens, (String) null), false));
    }
  }

  private static double[] wide(float[] values) {
    double[] wide = new double[values.length];
    java.util.Arrays.setAll(wide, i -> values[i]);
    return wide;
  }

  @Test
  void withAdaptersItIsRefusedByNameAndTritonIsTaken() {
    try (Device device = new CudaDeviceProvider().open(0);
        MoeOracle oracle = oracle()) {
      MoeConfig c = layer().lora(new LoraConfig(2, 8)).build();
      var evaluation = oracle.evaluate(c, platform(device));
      assertThat(evaluation.explain())
          .contains("triton")
          .contains("deltas of adapters have no place to enter before the activation");
      assertThat(oracle.select(c, platform(device)).chosenBackend().name()).isEqualTo("triton");
      assertThatThrownBy(() -> oracle.select(c, platform(device), "flashinfer-cutlass"))
          .hasMessageContaining("flashinfer-cutlass")
          .hasMessageContaining("no place to enter before the activation");
    }
  }

  @Test
  void withoutAdaptersTheChoiceFollowsThePriorities() {
    QuantScheme fp8 =
        QuantScheme.builder(QuantScheme.Format.FP8)
            .perTensor()
            .activations(ActivationQuant.FP8_STATIC)
            .build();
    try (Device device = new CudaDeviceProvider().open(0);
        MoeOracle oracle = oracle()) {
      MoeConfig plain = layer().build();
      assertThat(oracle.select(plain, platform(device)).chosenBackend().name()).isEqualTo("triton");
      MoeConfig quantised = plain.toBuilder().quantScheme(fp8).quantizedActivations(true).build();
      assertThat(oracle.select(quantised, platform(device)).chosenBackend().name())
          .isEqualTo("flashinfer-cutlass");
    }
  }
}
