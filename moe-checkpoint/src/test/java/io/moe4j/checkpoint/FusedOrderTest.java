package io.moe4j.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.AdapterException;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.AdapterPolicy.FusedOrder;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.NullUnmarked;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** In which order experts are folded into the factors of fused parameters. */
@NullUnmarked // a missing value fails the test where it is used
class FusedOrderTest extends AdapterTestBase {
  private static final int R = 3;
  private static final String DOWN = EXPERTS;

  private static TinyCheckpoint down() {
    return adapter(R, R)
        .with("target_parameters", List.of("experts.down_proj"))
        .pair(DOWN, DType.F32, d(R * E, I), d(H, R * E));
  }

  private static Map<String, Object> detail(String b) {
    return Map.of(
        "lora_A_layout",
        "grouped_by_expert",
        "parameters",
        Map.of("down_proj", Map.of("lora_B_layout", b, "num_experts", E)));
  }

  private void assertOrders(TinyCheckpoint t, AdapterPolicy policy, boolean aGrouped, boolean b) {
    Tensor fileA = a(t, DOWN);
    Tensor fileB = b(t, DOWN);
    assertDelta(
        load(t, qwen3(), policy).adapter().layer(1).get(LoraTarget.DOWN),
        E,
        H,
        I,
        R,
        1,
        (e, j, i) -> fileA.get(aGrouped ? e * R + j : j * E + e, i),
        (e, o, j) -> fileB.get(o, b ? e * R + j : j * E + e));
  }

  @Test
  void pefts() {
    assertOrders(down(), AdapterPolicy.DEFAULT, true, false);
    assertOrders(
        down().with("lora_B_layout", "rank_major"),
        AdapterPolicy.DEFAULT.withLoraBOrder(FusedOrder.GROUPED_BY_EXPERT),
        true,
        false);
  }

  @Test
  void marked() {
    assertOrders(
        down().with("lora_B_layout", "grouped_by_expert"), AdapterPolicy.DEFAULT, true, true);
    assertOrders(
        down().with("lora_B_layout", "grouped_by_expert").with("lora_A_layout", "rank_major"),
        AdapterPolicy.DEFAULT,
        false,
        true);
    assertOrders(
        down().with("unsloth_fused_expert_lora", detail("grouped_by_expert")),
        AdapterPolicy.DEFAULT,
        true,
        true);
    assertOrders(
        down()
            .with("lora_B_layout", "mixed")
            .with("unsloth_fused_expert_lora", detail("rank_major")),
        AdapterPolicy.DEFAULT,
        true,
        false);
  }

  @Test
  void unmarkedFilesOfUnslothAreRefusedUnlessTheCallerSays() {
    for (TinyCheckpoint t :
        List.of(
            down().with("auto_mapping", Map.of("unsloth_fixed", true)),
            down().with("unsloth_version", "2026.7.1"),
            down().with("auto_mapping", Map.of("parent_library", "unsloth.models.qwen3_moe")),
            down().with("auto_mapping", Map.of("unsloth_fixed", false)))) {
      assertThatThrownBy(() -> load(t, qwen3(), AdapterPolicy.LENIENT))
          .isInstanceOf(AdapterRefusedException.class)
          .hasMessageContaining("withLoraBOrder");
      assertOrders(
          t, AdapterPolicy.DEFAULT.withLoraBOrder(FusedOrder.GROUPED_BY_EXPERT), true, true);
      assertOrders(t, AdapterPolicy.DEFAULT.withLoraBOrder(FusedOrder.RANK_MAJOR), true, false);
    }
  }

  /** One rank, or one B for all experts, have one order only. */
  @Test
  void unmarkedFilesWithoutDoubtAreRead() {
    TinyCheckpoint rankOne =
        adapter(1, 1)
            .with("target_parameters", List.of("experts.down_proj"))
            .with("auto_mapping", Map.of("unsloth_fixed", true))
            .pair(DOWN, DType.F32, d(E, I), d(H, E));
    Tensor fileB = b(rankOne, DOWN);
    assertThat(load(rankOne, qwen3()).layer(1).get(LoraTarget.DOWN).b(2).get(5, 0))
        .isEqualTo(fileB.get(5, 2));
    TinyCheckpoint sharedB =
        adapter(R, R)
            .with("target_parameters", List.of("experts.down_proj"))
            .with("auto_mapping", Map.of("unsloth_fixed", true))
            .pair(DOWN, DType.F32, d(E * R, I), d(H, R));
    assertThat(load(sharedB, qwen3()).layer(1).get(LoraTarget.DOWN).numExperts()).isEqualTo(E);
    TinyCheckpoint perExpert =
        adapter(R, R)
            .with("auto_mapping", Map.of("unsloth_fixed", true))
            .pair(EXPERTS + ".0.up_proj", DType.F32, d(R, H), d(I, R));
    assertThat(load(perExpert, qwen3()).layer(1).factors()).containsOnlyKeys(LoraTarget.UP);
  }

  @ParameterizedTest
  @ValueSource(strings = {"expert_major", "", "Rank_Major", "grouped", "mixed"})
  void unknownOrdersAreRefused(String value) {
    for (String key : List.of("lora_A_layout", "lora_B_layout")) {
      assertThatThrownBy(() -> load(down().with(key, value), qwen3(), AdapterPolicy.LENIENT))
          .isInstanceOf(AdapterRefusedException.class)
          .hasMessageContaining(key)
          .hasMessageContaining("'" + value + "'")
          .hasMessageContaining("rank_major");
    }
    assertThatThrownBy(() -> load(down().with("unsloth_fused_expert_lora", detail(value)), qwen3()))
        .isInstanceOf(AdapterRefusedException.class)
        .hasMessageContaining("lora_B_layout");
  }

  /** A layout under a name that nobody reads would be ignored in silence. */
  @ParameterizedTest
  @ValueSource(
      strings = {"lora_b_layout", "lora_B_order", "loraBLayout", "lora_layout", "LORA_A_LAYOUT"})
  void misspeltKeysAreRefused(String key) {
    for (TinyCheckpoint t :
        List.of(
            down().with(key, "grouped_by_expert"),
            down().with("unsloth_fused_expert_lora", Map.of(key, "grouped_by_expert")))) {
      assertThatThrownBy(() -> load(t, qwen3()))
          .isInstanceOf(io.moe4j.api.CheckpointException.class)
          .hasMessageContaining("'" + key + "'")
          .hasMessageContaining("lora_B_layout");
    }
  }

  @Test
  void contradictionsAreRefused() {
    for (String key : List.of("lora_A_layout", "lora_B_layout")) {
      TinyCheckpoint two =
          down()
              .with(key, "rank_major")
              .with("unsloth_fused_expert_lora", Map.of(key, "grouped_by_expert"));
      assertThatThrownBy(() -> load(two, qwen3()))
          .isInstanceOf(AdapterException.class)
          .hasMessageContainingAll(key, "'rank_major'", "'grouped_by_expert'");
    }
    assertThatThrownBy(() ->
            load(
                down()
                    .with("lora_B_layout", "rank_major")
                    .with("unsloth_fused_expert_lora", detail("grouped_by_expert")),
                qwen3()))
        .hasMessageContaining("two values of lora_B_layout");
    Map<String, Object> five =
        Map.of("parameters", Map.of("mlp.experts.down_proj", Map.of("num_experts", 5)));
    assertThatThrownBy(() -> load(down().with("unsloth_fused_expert_lora", five), qwen3()))
        .hasMessageContaining("folds 5 experts, the model has 4");
    for (Object wrong : new Object[] {1, true, List.of("rank_major")}) {
      assertThatThrownBy(() -> load(down().with("lora_B_layout", wrong), qwen3()))
          .isInstanceOf(io.moe4j.api.CheckpointException.class)
          .hasMessageContaining("lora_B_layout");
    }
  }
}
