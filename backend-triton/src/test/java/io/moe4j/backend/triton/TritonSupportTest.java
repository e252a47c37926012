package io.moe4j.backend.triton;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;
import static org.assertj.core.api.InstanceOfAssertFactories.STRING;

import io.moe4j.api.MoeException;
import io.moe4j.api.config.Activation;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.platform.ComputeCapability;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.api.spi.Support;
import io.moe4j.api.tensor.DType;
import io.moe4j.backend.triton.launch.TritonKernels;
import io.moe4j.backend.triton.options.TritonOptions;
import io.moe4j.backend.triton.options.TritonProperties;
import io.moe4j.cuda.PtxVersion;
import io.moe4j.cuda.ops.ExpertKernels;
import io.moe4j.cuda.ops.LoraMode;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.ServiceLoader;
import org.junit.jupiter.api.Test;

class TritonSupportTest {
  private static final Platform H200 = Platform.of(DeviceInfo.cuda(0, "NVIDIA H200", 9, 0));

  private static MoeConfig.Builder config() {
    return MoeConfig.builder(2048, 768, 128, 8).inputDtype(DType.BF16).weightDtype(DType.BF16);
  }

  private static List<String> why(MoeConfig config, Platform platform) {
    return new TritonBackend()
        .isSupportedConfig(config, platform).reasons().stream()
            .map(Support.Reason::message)
            .toList();
  }

  @Test
  void supportsWhatItWasMadeFor() {
    assertThat(why(config().build(), H200)).isEmpty();
    assertThat(why(config().lora(new LoraConfig(32, 512)).build(), H200)).isEmpty();
    assertThat(why(config().build(), Platform.of(DeviceInfo.cuda(0, "A100", 8, 0)))).isEmpty();
  }

  @Test
  void withoutADeviceSaysWhyThereIsNone() {
    Platform none =
        new Platform(
            Platform.cpuOnly().devices(), Map.of(DeviceType.CUDA, "libcuda.so.1 was not found"));
    assertThat(why(config().build(), none))
        .containsExactly("no cuda device (libcuda.so.1 was not found); this machine has cpu:0");
  }

  /** With any driver that a refusal names, everything a forward may launch is there. */
  @Test
  void aDriverThatIsTooOldIsAReason() {
    for (String isa : List.of("8.5", "8.7", "8.8")) {
      for (int[] card : new int[][] {{8, 0}, {9, 0}, {10, 0}, {12, 0}}) {
        assertThat(why(config().build(), card(card[0], card[1], isa)))
            .singleElement()
            .asString()
            .contains("PTX " + isa, "needs PTX 9.0: driver 580 (CUDA 13.0) or later");
      }
    }
    PtxVersion named = new PtxVersion(9, 0);
    assertThat(why(config().build(), card(9, 0, named.toString()))).isEmpty();
    assertThat(TritonKernels.library().kernels()).allMatch(k -> k.ptxIsa().compareTo(named) <= 0);
    assertThat(TritonKernels.cudaLibrary().kernels())
        .allMatch(k -> k.ptxIsa().compareTo(named) <= 0);
    assertThat(ExpertKernels.all()).isNotEmpty().allMatch(k -> k.ptxIsa().compareTo(named) <= 0);
  }

  private static Platform card(int major, int minor, String isa) {
    return Platform.of(
        new DeviceInfo(
            new DeviceId(DeviceType.CUDA, 0),
            "card",
            Optional.of(new ComputeCapability(major, minor)),
            0,
            Map.of("ptx-isa", isa)));
  }

  @Test
  void everyReasonWithItsNumbers() {
    MoeConfig odd =
        MoeConfig.builder(33, 12, 600, 1)
            .weightDtype(DType.F32)
            .lora(new LoraConfig(2, 2000))
            .batchInvariant(true)
            .build();
    assertThat(why(odd, Platform.of(DeviceInfo.cuda(0, "T4", 7, 5))))
        .containsExactly(
            "compute capability 7.5 < 8.0",
            "weight dtype F32 is none of BF16, F16",
            "600 local experts > 512",
            "batchInvariant is true, must be false: tiles and splits follow the batch size",
            "LoRA rank 2000 > 1016");
    assertThat(why(config().inputDtype(DType.F32).build(), H200))
        .containsExactly("input dtype F32 is not the weights' BF16");
  }

  @Test
  void mxfp4AsGptOssHasIt() {
    MoeConfig gptOss =
        MoeConfig.builder(2880, 2880, 128, 4)
            .inputDtype(DType.BF16)
            .quantScheme(QuantScheme.MXFP4)
            .activation(Activation.SWIGLUOAI)
            .expertBias(true)
            .build();
    assertThat(why(gptOss, H200)).isEmpty();
    assertThat(
            why(
                gptOss.toBuilder()
                    .activation(Activation.RELU2_NO_MUL)
                    .weightDtype(DType.F16)
                    .inputDtype(DType.F16)
                    .latentSize(2024)
                    .build(),
                H200))
        .hasSize(3)
        .allMatch(m -> m.startsWith("mxfp4 "));
    assertThat(why(gptOss.toBuilder().quantScheme(QuantScheme.int4(128)).build(), H200))
        .singleElement(STRING)
        .startsWith("quantisation [int4 group 128] is none of: none, mxfp4");
  }

  /** Deltas of a wrapper take any rank, and rows that need no padding. */
  @Test
  void theComposableModeHasReasonsOfItsOwn() {
    MoeConfig high = config().lora(new LoraConfig(2, 2000)).build();
    MoeConfig odd =
        MoeConfig.builder(33, 12, 8, 1)
            .inputDtype(DType.BF16)
            .weightDtype(DType.BF16)
            .lora(new LoraConfig(2, 8))
            .build();
    for (LoraMode mode : List.of(LoraMode.COMPOSABLE, LoraMode.COMPOSABLE_ONE_STREAM)) {
      assertThat(why(with(high, mode), H200)).isEmpty();
      assertThat(why(with(odd, mode), H200))
          .containsExactly(
              "the LoRA mode is "
                  + mode.text()
                  + ", which takes widths that are multiples of 8, not 33 and 12");
    }
    assertThat(why(with(high, LoraMode.FUSED), H200)).hasSize(1);
  }

  private static MoeConfig with(MoeConfig config, LoraMode mode) {
    return config.toBuilder().options(TritonOptions.DEFAULT.withLora(mode)).build();
  }

  /** Four times the memory of the file is nothing to happen unasked; the reason says how to ask. */
  @Test
  void quantisedWeightsAreUnpackedWhereThatIsAsked() {
    MoeConfig int4 = config().quantScheme(QuantScheme.int4(32)).build();
    assertThat(why(int4, H200))
        .singleElement(STRING)
        .contains("backend-marlin")
        .contains("-Dmoe4j.triton.unpack=true");
    MoeConfig asked =
        int4.toBuilder().options(TritonOptions.DEFAULT.withUnpackedWeights(true)).build();
    assertThat(why(asked, H200)).isEmpty();
    System.setProperty(TritonProperties.UNPACK, "true");
    try {
      assertThat(new TritonBackend().isSupportedConfig(int4, H200).reasons()).isEmpty();
      System.setProperty(TritonProperties.UNPACK, "yes");
      assertThat(new TritonBackend().isSupportedConfig(int4, H200).reasons())
          .extracting(Support.Reason::message)
          .contains("-Dmoe4j.triton.unpack is \"yes\", accepted: true, false");
    } finally {
      System.clearProperty(TritonProperties.UNPACK);
    }
  }

  @Test
  void aPropertyThatIsNoModeIsAReasonUnlessTheLayerSaysItself() {
    System.setProperty(TritonProperties.LORA, "both");
    TritonBackend backend;
    try {
      backend = new TritonBackend();
    } finally {
      System.clearProperty(TritonProperties.LORA);
    }
    String why =
        "-Dmoe4j.triton.lora is \"both\", accepted:"
            + " fused, composable, composable-one-stream, composable-two-streams";
    MoeConfig config = config().build();
    assertThat(backend.isSupportedConfig(config, H200).reasons())
        .extracting(Support.Reason::message)
        .containsExactly(why);
    assertThat(backend.isSupportedConfig(with(config, LoraMode.FUSED), H200).reasons()).isEmpty();
    assertThat(why(config, H200)).as("found after the property was cleared").isEmpty();
    TritonProperties read;
    System.setProperty(TritonProperties.LORA, "both");
    try {
      read = TritonProperties.read();
    } finally {
      System.clearProperty(TritonProperties.LORA);
    }
    assertThatExceptionOfType(MoeException.class)
        .isThrownBy(() -> read.options(config))
        .withMessage(why);
  }

  /** Two layers of one process may differ; the property is only for those that do not say. */
  @Test
  void optionsOfTheLayerComeBeforeTheProperty() {
    System.setProperty(TritonProperties.LORA, "composable");
    TritonProperties read;
    try {
      read = TritonProperties.read();
    } finally {
      System.clearProperty(TritonProperties.LORA);
    }
    MoeConfig config = config().build();
    assertThat(read.options(config).lora()).isEqualTo(LoraMode.COMPOSABLE);
    assertThat(read.options(with(config, LoraMode.FUSED)).lora()).isEqualTo(LoraMode.FUSED);
    assertThat(TritonProperties.read().options(config)).isEqualTo(TritonOptions.DEFAULT);
  }

  @Test
  void bothAreFoundByServiceLoader() {
    assertThat(
            ServiceLoader.load(ExpertsBackend.class).stream()
                .map(p -> p.get().name())
                .filter(n -> n.contains("triton")))
        .containsExactlyInAnyOrder("triton", "batched-triton");
  }
}
