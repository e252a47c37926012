package io.moe4j.tck;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.Support;
import io.moe4j.api.tensor.DType;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Refusals as others would word them. */
class RefusalsTest {
  private static final Platform CARD = Platform.of(DeviceInfo.cuda(0, "NVIDIA H200", 9, 0));
  private static final MoeConfig LAYER =
      MoeConfig.builder(96, 80, 8, 2)
          .inputDtype(DType.F16)
          .weightDtype(DType.F16)
          .quantScheme(
              QuantScheme.builder(QuantScheme.Format.INT4).group(64).symmetric(false).build())
          .routing(
              RoutingConfig.builder(RoutingConfig.Scoring.SIGMOID)
                  .correctionBias(true)
                  .renormalize(true)
                  .build())
          .parallel(ParallelConfig.tensor(2, 1).replicated())
          .lora(new LoraConfig(3, 48))
          .build();

  private static boolean isReadable(Support.Code code, String message) {
    return Refusals.isReadable(LAYER, CARD, new Support.Reason(code, message));
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        "DTYPE | input dtype is F16, must be BF16",
        "QUANTIZATION | group size 64 is not taken, only 128",
        "QUANTIZATION | zero points are not taken, only symmetric weights",
        "QUANTIZATION | int4 weights have no kernel here",
        "ROUTING | a correction bias is not added to the scores",
        "ROUTING | sigmoid scores are not computed",
        "SIZE | H = 96 is not a multiple of 64",
        "SIZE | rows of 80 columns do not fill a tile of 128",
        "PARALLEL | tp 2 is not possible, only 1",
        "PARALLEL | replicated tokens are not summed over ranks",
        "ROUTER_WEIGHT_ON_INPUT | apply_router_weight_on_input is not done in this kernel",
        "EXPERT_MAP | an expert_map is not read",
        "LORA | adapter rank 48 is beyond the 32 accepted",
        "LORA | at most 2 adapters at once, not 3",
        "CAPABILITY | compute capability 9.0 is below 10.0",
      })
  void takes(Support.Code code, String message) {
    assertThat(isReadable(code, message)).isTrue();
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        "DTYPE | F16",
        "DTYPE | a dtype that is not supported by this kernel",
        "QUANTIZATION | the kernel failed with error number 64",
        "ROUTING | this way of routing is not supported here",
        "SIZE | error 8: see the log for what went wrong",
        "PARALLEL | this layout of ranks is not supported",
        "EXPERT_MAP | a map of something is not read",
        "LORA | an adapter that is too large was given",
        "CAPABILITY | this card is too old for it",
        "OTHER | error 2: there was a bad argument, see the manual",
      })
  void refuses(Support.Code code, String message) {
    assertThat(isReadable(code, message)).isFalse();
  }
}
