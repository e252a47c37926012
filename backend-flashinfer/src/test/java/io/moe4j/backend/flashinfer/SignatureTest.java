package io.moe4j.backend.flashinfer;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.tensor.DType;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Argument lists by version, and by the loaded function's own word. */
class SignatureTest {
  private static FlashInferVersion version(String text) {
    return FlashInferVersion.parse(text).orElseThrow();
  }

  @ParameterizedTest
  @CsvSource({
    "0.6.0, 7, 24",
    "0.6.7.post3, 7, 24",
    "0.6.8, 7, 25",
    "0.6.14, 7, 25",
    "0.6.15.post1, 8, 25",
    "0.6.16.post4+cu130, '8,9', 26",
    "0.6.17rc5, '8,9', 26",
    "0.6.18+cu128, 9, '26,28'",
  })
  void versionsHaveTheListsOfTheirSources(String text, String init, String run) {
    assertThat(sizes("init", text)).isEqualTo(init);
    assertThat(sizes("run_moe", text)).isEqualTo(run);
    assertThat(ArgumentLists.knows(version(text))).isTrue();
  }

  private static String sizes(String function, String version) {
    return String.join(
        ",",
        ArgumentLists.of(function, version(version)).stream()
            .map(s -> Integer.toString(s.size()))
            .toList());
  }

  @ParameterizedTest
  @CsvSource({"0.5.3", "0.6.19", "0.7.2.post1", "1.6.18", "0.6.18.dev20260801"})
  void otherVersionsAreUnknown(String text) {
    assertThat(ArgumentLists.knows(version(text))).isFalse();
  }

  @ParameterizedTest
  @CsvSource({"''", "unknown", "0.6", "0.0.0+unknown+x", "0.6.x", "99999999999.1.1"})
  void whatIsNoVersionIsNone(String text) {
    assertThat(FlashInferVersion.parse(text)).isEmpty();
  }

  @Test
  void laterListsKeepTheOrderOfEarlierOnes() {
    Signature last = ArgumentLists.of("run_moe", version("0.6.18")).get(1);
    assertThat(last.toString())
        .isEqualTo(
            "run_moe(output:T input:T token_selected_experts:T token_final_scales:T?"
                + " fc1_expert_weights:T fc1_expert_biases:T? fc2_expert_weights:T"
                + " fc2_expert_biases:T? quant_scales:T[]? input_sf:T? swiglu_alpha:T?"
                + " swiglu_beta:T? swiglu_limit:T? situ_beta:T? situ_linear_beta:T?"
                + " swizzled_input_sf:b tp_size:i tp_rank:i ep_size:i ep_rank:i cluster_size:i"
                + " cluster_rank:i enable_alltoall:b min_latency_mode:b profile_ids:i[]?"
                + " enable_pdl:b base_activation_type:i workspace_buffer:T?)");
    assertThat(ArgumentLists.of("trtllm_bf16_moe", version("0.6.17"))).isEmpty();
    Signature trtllm = ArgumentLists.of("trtllm_bf16_moe", version("0.6.18")).getFirst();
    assertThat(trtllm.size()).isEqualTo(33);
    assertThat(trtllm.parameters().getFirst().name()).isEqualTo("routing_input_mode");
  }

  @Test
  void aLoadedFunctionIsMatchedByWhatItSays() throws UnavailableException {
    try (TvmModule module = Standin.runtime().module(Standin.moe());
        TvmFunction init = module.function("init")) {
      List<Signature> known = ArgumentLists.of("init", version("0.6.16"));
      assertThat(Signature.match(init, known, "0.6.16").size()).isEqualTo(9);
      assertThatThrownBy(
              () -> Signature.match(init, ArgumentLists.of("init", version("0.6.15")), "0.6.15"))
          .isInstanceOf(UnavailableException.class)
          .hasMessage("init of FlashInfer 0.6.15 takes 9 arguments, moe4j knows it with [8]");
    }
  }

  @Test
  void missingArgumentsAreNamedAndUnknownOnesLeftOut() {
    Signature two = Signature.of("f", "dtype:dt flag:b extra:T?");
    assertThatThrownBy(() -> new NamedArguments().dtype("dtype", DType.BF16).inOrderOf(two))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessage("f needs flag, none was given");
    try (TvmArguments a =
        new NamedArguments()
            .dtype("dtype", DType.BF16)
            .bool("flag", true)
            .integer("of_another_version", 3)
            .inOrderOf(two)) {
      assertThat(a.count()).isEqualTo(3);
    }
  }
}
