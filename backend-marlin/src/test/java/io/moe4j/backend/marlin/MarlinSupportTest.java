package io.moe4j.backend.marlin;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.QuantScheme.Format;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.BackendPriority;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.api.spi.Support;
import io.moe4j.api.tensor.DType;
import io.moe4j.cuda.ops.LoraMode;
import java.util.List;
import java.util.Map;
import java.util.ServiceLoader;
import org.junit.jupiter.api.Test;

class MarlinSupportTest {
  private static final Platform H200 = Platform.of(DeviceInfo.cuda(0, "NVIDIA H200", 9, 0));

  private static MoeConfig.Builder config() {
    return MoeConfig.builder(2048, 768, 128, 8)
        .inputDtype(DType.BF16)
        .weightDtype(DType.BF16)
        .quantScheme(QuantScheme.int4(128));
  }

  private static List<String> why(MoeConfig config, Platform platform) {
    return new MarlinBackend()
        .isSupportedConfig(config, platform).reasons().stream()
            .map(Support.Reason::message)
            .toList();
  }

  @Test
  void bothAreFound() {
    assertThat(ServiceLoader.load(ExpertsBackend.class).stream().map(p -> p.get().name()))
        .contains("marlin", "batched-marlin");
  }

  @Test
  void supportsEverySchemeItHasKernelsFor() {
    for (QuantScheme s : KernelsTest.schemes()) {
      for (int major : new int[] {8, 9, 12}) {
        Platform p = Platform.of(DeviceInfo.cuda(0, "a card", major, 0));
        assertThat(why(config().quantScheme(s).lora(new LoraConfig(32, 512)).build(), p)).isEmpty();
        assertThat(
                why(
                    config().quantScheme(s).inputDtype(DType.F16).weightDtype(DType.F16).build(),
                    p))
            .isEmpty();
      }
    }
  }

  @Test
  void everyReasonIsSaid() {
    Platform none =
        new Platform(
            Platform.cpuOnly().devices(), Map.of(DeviceType.CUDA, "libcuda.so.1 was not found"));
    MoeConfig bad =
        config()
            .quantScheme(QuantScheme.int4(24))
            .inputDtype(DType.F32)
            .weightDtype(DType.F32)
            .batchInvariant(true)
            .lora(new LoraConfig(1, 4096))
            .build();
    assertThat(why(bad, none))
        .containsExactly(
            "no cuda device (libcuda.so.1 was not found); this machine has cpu:0",
            "a scale serves 24 inputs (int4 group 24), must be a multiple of 16 or all of them",
            "weights dequantise to F32, which is none of BF16, F16",
            "batchInvariant is true, must be false: tiles and splits follow the batch size",
            "LoRA rank 4096 > 1016");
  }

  @Test
  void plainWeightsAreForOthers() {
    assertThat(why(config().quantScheme(QuantScheme.NONE).build(), H200))
        .containsExactly(
            "weights are plain BF16, this backend is for packed ones (triton computes with plain ones)");
    assertThat(
            why(
                config().quantSchemes(List.of(QuantScheme.int4(128), QuantScheme.NONE)).build(),
                H200))
        .containsExactly(
            "w13 weights are of several kinds, [int4 group 128, none], must all be of one; triton"
                + " computes the layer unpacked to BF16 (-Dmoe4j.triton.unpack=true)");
    assertThat(
            why(
                config()
                    .quantSchemes(List.of(QuantScheme.int4(128)), List.of(QuantScheme.NONE))
                    .build(),
                H200))
        .containsExactly(
            "w2 weights are plain BF16 beside packed ones ([int4 group 128, none]), must be packed,"
                + " too; triton computes the layer unpacked to BF16 (-Dmoe4j.triton.unpack=true)");
  }

  /** Each product has its own kernels; what one of them cannot be the other cannot, either. */
  @Test
  void theProductsMayBeOfTwoSchemes() {
    List<QuantScheme> schemes = KernelsTest.schemes();
    for (QuantScheme first : schemes) {
      for (QuantScheme second : schemes) {
        assertThat(why(config().quantSchemes(List.of(first), List.of(second)).build(), H200))
            .isEmpty();
      }
    }
    assertThat(
            why(
                config()
                    .quantSchemes(List.of(QuantScheme.int4(128)), List.of(QuantScheme.int4(24)))
                    .build(),
                H200))
        .containsExactly(
            "a scale serves 24 inputs (int4 group 24), must be a multiple of 16 or all of them");
    assertThat(
            why(
                config()
                    .quantSchemes(
                        List.of(QuantScheme.int4(128)),
                        List.of(QuantScheme.int4(128), QuantScheme.int8(64)))
                    .build(),
                H200))
        .singleElement()
        .asString()
        .startsWith("w2 weights are of several kinds, [int4 group 128, int8 group 64]");
  }

  private static List<String> composed(MoeConfig config) {
    return why(
        config.toBuilder()
            .options(MarlinOptions.DEFAULT.withLora(LoraMode.COMPOSABLE))
            .lora(new LoraConfig(4, 4096))
            .build(),
        H200);
  }

  /** A wrapper takes any rank; gate and up are one matrix to it, of whole tiles. */
  @Test
  void deltasOfOthers() {
    assertThat(composed(config().build())).isEmpty();
    assertThat(
            composed(
                MoeConfig.builder(2048, 776, 8, 2)
                    .inputDtype(DType.BF16)
                    .weightDtype(DType.BF16)
                    .quantScheme(QuantScheme.int4(16))
                    .build()))
        .containsExactly(
            "the LoRA mode is composable, which takes hidden sizes that are multiples of 8 and"
                + " intermediate sizes that are multiples of 16, not 2048 and 776");
    assertThat(
            composed(
                MoeConfig.builder(2048, 776, 8, 2)
                    .inputDtype(DType.BF16)
                    .weightDtype(DType.BF16)
                    .activation(Activation.RELU2_NO_MUL)
                    .quantScheme(QuantScheme.int4(16))
                    .build()))
        .isEmpty();
  }

  @Test
  void aMistypedPropertyIsAReason() {
    System.setProperty(MarlinProperties.LORA, "fast");
    try {
      assertThat(why(config().build(), H200))
          .singleElement()
          .asString()
          .startsWith("-Dmoe4j.marlin.lora is \"fast\", accepted: fused, composable");
      assertThat(why(config().options(MarlinOptions.DEFAULT).build(), H200)).isEmpty();
      System.setProperty(MarlinProperties.LORA, "composable-two-streams");
      assertThat(MarlinProperties.read().options(config().build()).lora())
          .isEqualTo(LoraMode.COMPOSABLE_TWO_STREAMS);
    } finally {
      System.clearProperty(MarlinProperties.LORA);
    }
  }

  @Test
  void cardsTypesAndRanksThatItCannotServe() {
    assertThat(why(config().build(), Platform.of(DeviceInfo.cuda(0, "V100", 7, 0))))
        .singleElement()
        .asString()
        .contains("compute capability 7.0 < 8.0");
    assertThat(why(config().inputDtype(DType.F32).build(), H200))
        .containsExactly("input dtype F32 is not the weights' BF16");
    assertThat(
            why(
                config().quantScheme(QuantScheme.builder(Format.FP8).group(16).build()).build(),
                H200))
        .containsExactly(
            "a scale serves 16 inputs (fp8 group 16), must be a multiple of 32 or all of them");
    assertThat(why(config().parallel(ParallelConfig.tensor(2, 0)).build(), H200)).isEmpty();
  }

  /** Kernels divide in f32: beyond these a row would be read from another token, silently. */
  @Test
  void moreTokensThanKernelsCanCount() {
    Platform p = Platform.of(DeviceInfo.cuda(0, "a card", 9, 0));
    assertThat(why(config().maxTokens(1 << 21).build(), p)).isEmpty();
    assertThat(why(config().maxTokens((1 << 21) + 1).build(), p))
        .containsExactly("maxTokens is 2097153, accepted: 1..2097152");
  }

  @Test
  void standsInFrontOfBackendsForAnyCard() {
    assertThat(new MarlinBackend().priority(config().build(), H200))
        .isGreaterThan(BackendPriority.GPU_PORTABLE)
        .isLessThan(BackendPriority.GPU_TUNED);
  }
}
