package io.moe4j.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import io.moe4j.api.AdapterException;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.DType;
import java.io.IOException;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.stream.IntStream;
import org.jspecify.annotations.NullUnmarked;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/** Entries of patterns that contradict each other, against what PEFT itself made of them. */
@NullUnmarked // a missing value fails the test where it is used
class PeftPatternsTest extends AdapterTestBase {
  private static final JsonNode FILE = read();
  private static final String UP = EXPERTS + ".0.up_proj";

  private static JsonNode read() {
    try {
      return new ObjectMapper().readTree(Fixtures.peft().resolve("patterns.json").toFile());
    } catch (IOException e) {
      throw new java.io.UncheckedIOException(e);
    }
  }

  static IntStream cases() {
    return IntStream.range(0, FILE.get("cases").size());
  }

  @ParameterizedTest
  @MethodSource("cases")
  void ranksAndAlphasArePefts(int number) {
    JsonNode c = FILE.get("cases").get(number);
    PatternTable ranks = new PatternTable("rank_pattern", patterns(c.get("rank_pattern")));
    PatternTable alphas = new PatternTable("alpha_pattern", patterns(c.get("alpha_pattern")));
    for (int i = 0; i < FILE.get("modules").size(); i++) {
      String module = FILE.get("modules").get(i).asText();
      assertThat(ranks.find(module).orElse(FILE.get("r").asDouble()))
          .as("rank of %s", module)
          .isEqualTo(c.get("ranks").get(i).asDouble());
      assertThat(alphas.find(module).orElse(FILE.get("lora_alpha").asDouble()))
          .as("alpha of %s", module)
          .isEqualTo(c.get("alphas").get(i).asDouble());
    }
  }

  private static Map<String, Double> patterns(JsonNode json) {
    Map<String, Double> all = new LinkedHashMap<>();
    json.properties().forEach(e -> all.put(e.getKey(), e.getValue().asDouble()));
    return all;
  }

  private static Map<String, Integer> ordered(Object... entries) {
    Map<String, Integer> all = new LinkedHashMap<>();
    for (int i = 0; i < entries.length; i += 2) {
      all.put((String) entries[i], (Integer) entries[i + 1]);
    }
    return all;
  }

  private static TinyCheckpoint file(
      int rank, Map<String, Integer> ranks, Map<String, Integer> alphas) {
    return adapter(2, 2)
        .with("rank_pattern", ranks)
        .with("alpha_pattern", alphas)
        .pair(UP, DType.F32, d(rank, H), d(I, rank));
  }

  /**
   * Trained with the other order: PEFT, which sorts, cannot load it; which alpha it had is lost.
   */
  @Test
  void factorsOfAnotherRankThanTheFirstEntryAndTwoAlphas() {
    TinyCheckpoint t =
        file(
            4,
            ordered("experts.0.up_proj", 8, "up_proj", 4),
            ordered("experts.0.up_proj", 8, "up_proj", 16));
    assertThatThrownBy(() -> load(t, qwen3()))
        .isInstanceOf(AdapterException.class)
        .hasMessageContaining("alpha_pattern")
        .hasMessageContaining("rank_pattern")
        .hasMessageContaining("have rank 4, not the 8")
        .hasMessageContaining("leave only the entry that it was trained with");
  }

  /** One alpha only: nothing is in doubt, the factors say their rank. */
  @Test
  void factorsOfAnotherRankThanTheFirstEntryAndOneAlpha() {
    TinyCheckpoint t =
        file(4, ordered("experts.0.up_proj", 8, "up_proj", 4), ordered("up_proj", 16));
    assertThat(load(t, qwen3()).layer(1).get(LoraTarget.UP).b().get(0, 5, 1))
        .isEqualTo(4 * b(t, UP).get(5, 1));
  }
}
