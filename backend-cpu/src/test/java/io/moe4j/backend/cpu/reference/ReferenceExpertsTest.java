package io.moe4j.backend.cpu.reference;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.ActivationQuant;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.SharedExpertConfig;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.spi.ModularExperts;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.Packing;
import io.moe4j.api.weights.SharedExpertWeights;
import io.moe4j.api.weights.Weight;
import io.moe4j.backend.cpu.CpuBlockOpsProvider;
import io.moe4j.backend.cpu.CpuDeviceProvider;
import io.moe4j.reference.ReferenceExperts;
import io.moe4j.reference.ReferenceMoe;
import java.lang.foreign.MemorySegment;
import java.util.List;
import java.util.Map;
import java.util.ServiceLoader;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;

/** Numbers worked out by hand on a block of H = 2, I = 1, E = 3 with squared ReLU. */
class ReferenceExpertsTest {
  private static final Workspace NONE = new Workspace(new HostMemory(MemorySegment.NULL));

  private static Tensor floats(int rows, int cols, float... v) {
    return Tensor.ofFloats(v, rows, cols);
  }

  /** Expert e: u = (e + 1) * x0, y = [u^2, -u^2]. */
  private static ExpertWeights.Expert expert(int e) {
    return ExpertWeights.Expert.plain(null, floats(1, 2, e + 1, 0), floats(2, 1, 1, -1));
  }

  private static final ExpertWeights WEIGHTS =
      new ExpertWeights(List.of(expert(0), expert(1), expert(2)));

  private static MoeConfig.Builder config() {
    return MoeConfig.builder(2, 1, 3, 2).activation(Activation.RELU2_NO_MUL).weightDtype(DType.F32);
  }

  private static float[] run(
      ExpertsBackend backend,
      MoeConfig config,
      float[] x,
      int[] ids,
      float[] topkWeights,
      int @Nullable [] map) {
    int tokens = x.length / 2;
    var routing =
        new ExpertRouting(
            Tensor.ofInts(ids, tokens, 2),
            Tensor.ofFloats(topkWeights, tokens, 2),
            map == null ? null : Tensor.ofInts(map, map.length));
    float[] out = new float[x.length];
    try (var device = new CpuDeviceProvider().open(0);
        var experts = (ModularExperts) backend.prepare(config, WEIGHTS, device)) {
      Tensor hidden = floats(tokens, 2, x);
      Tensor output = floats(tokens, 2, out);
      if (backend.activationFormat() == ActivationFormat.STANDARD) {
        experts.apply(
            ExpertsInputs.standard(hidden, routing, output), null, NONE, DeviceStream.HOST);
      } else {
        Tensor in = Tensor.ofFloats(new float[3 * 4 * 2], 3, 4, 2);
        Tensor result = Tensor.ofFloats(new float[3 * 4 * 2], 3, 4, 2);
        Tensor counts = Tensor.ofInts(new int[3], 3);
        try (var ops =
            new CpuBlockOpsProvider()
                .prepare(config, new MoeLayerWeights(WEIGHTS, null, null, null), device)) {
          ops.dispatch(hidden, routing, null, in, counts, null, NONE, DeviceStream.HOST);
          experts.apply(ExpertsInputs.batched(in, counts, result), null, NONE, DeviceStream.HOST);
          ops.combine(result, routing, output, NONE, DeviceStream.HOST);
        }
      }
    }
    return out;
  }

  private static final List<ExpertsBackend> BACKENDS =
      List.of(new CpuReferenceBackend(), new BatchedCpuReferenceBackend());

  @Test
  void weightsTheSumOfTheChosenExperts() {
    for (ExpertsBackend backend : BACKENDS) {
      // token 0: 0.5 * (1*2)^2 + 0.25 * (3*2)^2 = 11; token 1: negative, squared ReLU gives 0
      assertThat(
              run(
                  backend,
                  config().build(),
                  new float[] {2, 7, -1, 7},
                  new int[] {0, 2, 1, 2},
                  new float[] {0.5f, 0.25f, 1, 1},
                  null))
          .as(backend.name())
          .containsExactly(11, -11, 0, 0);
    }
  }

  @Test
  void theWeightOnTheInputGoesThroughTheActivation() {
    for (ExpertsBackend backend : BACKENDS) {
      // (0.5*2)^2 + (3*0.25*2)^2 = 1 + 2.25
      assertThat(
              run(
                  backend,
                  config().routerWeightOnInput(true).build(),
                  new float[] {2, 7},
                  new int[] {0, 2},
                  new float[] {0.5f, 0.25f},
                  null))
          .as(backend.name())
          .containsExactly(3.25f, -3.25f);
    }
  }

  @Test
  void pairsWithoutALocalExpertAddNothing() {
    for (ExpertsBackend backend : BACKENDS) {
      // map: global 0 -> local 2, 1 -> none, 2 -> none; ids -1 and 3 do not exist
      assertThat(
              run(
                  backend,
                  config().build(),
                  new float[] {1, 0, 1, 0, 1, 0},
                  new int[] {0, 1, 2, -1, 3, 0},
                  new float[] {1, 1, 1, 1, 1, 2},
                  new int[] {2, -1, -1}))
          .as(backend.name())
          .containsExactly(9, -9, 0, 0, 18, -18);
    }
  }

  @Test
  void loraIsTheSameAsMergedWeights() {
    // up delta of expert 1: b [1, 1] . a [1, 2] = 3 * [1, 1]; down delta: [0.5, 0]
    var lora =
        new LoraLayer(
            Map.of(
                LoraTarget.UP,
                new LoraFactors(
                    Tensor.ofFloats(new float[] {1, 1}, 1, 1, 2),
                    Tensor.ofFloats(new float[] {0, 3, 0}, 3, 1, 1)),
                LoraTarget.DOWN,
                new LoraFactors(
                    Tensor.ofFloats(new float[] {0, 0.5f, 0}, 3, 1, 1),
                    Tensor.ofFloats(new float[] {1, 0}, 1, 2, 1))));
    double[] x = {2, 1};
    // u = 2*2 + 3*(2+1) = 13, u^2 = 169, y = [1.5 * 169, -169]
    assertThat(ReferenceMoe.expert(Activation.RELU2_NO_MUL, WEIGHTS.expert(1), x, lora, 1))
        .containsExactly(253.5, -169);
    assertThat(ReferenceMoe.expert(Activation.RELU2_NO_MUL, WEIGHTS.expert(0), x, lora, 0))
        .containsExactly(4, -4);
  }

  @Test
  void sharedExpertBehindItsGate() {
    var shared = new SharedExpertWeights(expert(0), floats(1, 2, 0, 1));
    var config = new SharedExpertConfig(1, Activation.RELU2_NO_MUL, true);
    double gate = 1 / (1 + Math.exp(-0.5));
    assertThat(ReferenceMoe.sharedExpert(config, shared, new double[] {2, 0.5}, null))
        .containsExactly(new double[] {4 * gate, -4 * gate}, within(1e-15));
  }

  @Test
  void aMachineWithoutAHostDeviceIsRefused() {
    var nothing =
        new Platform(
            java.util.List.of(),
            java.util.Map.of(io.moe4j.api.platform.DeviceType.CPU, "no provider"));
    var support = new CpuReferenceBackend().isSupportedConfig(config().build(), nothing);
    assertThat(support.reasons()).hasSize(1);
    assertThat(support).hasToString(nothing.whyAbsent(io.moe4j.api.platform.DeviceType.CPU));
    assertThat(support.toString()).contains("no provider");
  }

  @Test
  void quantisedActivationsNeedTheScaleThatTheirSchemeStores() {
    MoeConfig config =
        config()
            .quantScheme(
                QuantScheme.builder(QuantScheme.Format.FP8)
                    .perTensor()
                    .activations(ActivationQuant.FP8_STATIC)
                    .build())
            .quantizedActivations(true)
            .build();
    assertThat(new CpuReferenceBackend().isSupportedConfig(config, Platform.cpuOnly()).reasons())
        .isEmpty();
    Tensor codes = Tensor.of(DType.F8_E4M3, MemorySegment.ofArray(new byte[4]), 2, 2);
    Weight w =
        Weight.builder("w", config.quantSchemes().getFirst(), 2, 2, codes, Packing.DENSE)
            .scales(Tensor.ofFloats(new float[] {1}, 1))
            .build();
    ExpertWeights experts = new ExpertWeights(List.of(ExpertWeights.Expert.of(null, w, w)));
    assertThatThrownBy(() -> new ReferenceExperts(config, experts))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("w has no input scale");
    assertThat(
            new ReferenceExperts(config.toBuilder().quantizedActivations(false).build(), experts))
        .isNotNull();
  }

  @Test
  void isFoundOnTheClassPath() {
    assertThat(ServiceLoader.load(ExpertsBackend.class))
        .extracting(ExpertsBackend::name)
        .contains("cpu-reference", "batched-cpu-reference");
  }
}
