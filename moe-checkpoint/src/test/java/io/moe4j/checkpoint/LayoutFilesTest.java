package io.moe4j.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import com.fasterxml.jackson.databind.ObjectMapper;
import io.moe4j.api.CheckpointException;
import io.moe4j.api.config.Activation;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.NullUnmarked;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Families described in JSON by a user. */
@NullUnmarked // a missing value fails the test where it is used
class LayoutFilesTest {
  private static final String HOUSE =
      """
      {
        "model_type": "house_moe",
        "blocks": ["stack.{L}.moe"],
        "beside": ["stack.{L}.common"],
        "experts": [{"gate": "bank.{E}.g", "up": "bank.{E}.u", "down": "bank.{E}.d"}],
        "router": {"weight": "router.weight", "stored": "in_out", "correction_bias": "shift", "correction_bias_row": 1},
        "shared_expert": {"gate_up": "common.in", "down": "common.out"},
        "ignored": ["picture."],
        "config": {
          "intermediate_size": {"key": ["width", "old_width"], "at": 0},
          "top_k": {"key": "picks"},
          "num_layers": {"key": "depth"},
          "activation": "swiglu_step",
          "activation_limit": {"key": "limits", "default": 0},
          "shared_activation_limit": 3,
          "scoring": {"key": "score", "map": {"s": "sigmoid", "*": "softmax"}},
          "correction_bias": true,
          "epsilon": 0.25,
          "scaling_factor": {"key": "factor", "default": 2},
          "moe_layers": {"listed": "which"}
        }
      }
      """;

  @TempDir Path dir;

  private static TinyCheckpoint house() {
    TinyCheckpoint t = new TinyCheckpoint();
    t.with("model_type", "house_moe")
        .with("hidden_size", 8)
        .with("num_experts", 4)
        .with("old_width", List.of(6, 99))
        .with("picks", 2)
        .with("depth", 3)
        .with("limits", List.of(0, 0, 5))
        .with("score", "s")
        .with("which", "0, 2");
    for (int layer : List.of(0, 2)) {
      String block = "model.stack." + layer + ".";
      for (int e = 0; e < 4; e++) {
        t.put(block + "moe.bank." + e + ".g.weight", DType.BF16, 6, 8);
        t.put(block + "moe.bank." + e + ".u.weight", DType.BF16, 6, 8);
        t.put(block + "moe.bank." + e + ".d.weight", DType.BF16, 8, 6);
      }
      t.put(block + "moe.router.weight", DType.BF16, 8, 4);
      t.put(block + "moe.shift", DType.F32, 2, 4);
      t.put(block + "moe.picture.weight", DType.F32, 2);
      t.put(block + "common.in.weight", DType.BF16, 10, 8);
      t.put(block + "common.out.weight", DType.BF16, 8, 5);
    }
    return t;
  }

  @Test
  void aFileBesideTheConfigDescribesTheFamily() throws IOException {
    TinyCheckpoint t = house();
    Path model = t.writeModel(dir.resolve("model"));
    Files.writeString(model.resolve(MoeCheckpoint.LAYOUT_FILE), HOUSE);
    try (MoeCheckpoint c = MoeCheckpoint.open(model)) {
      assertThat(c.layers()).containsExactly(0, 2);
      assertThat(c.notes()).anyMatch(n -> n.contains("picture."));
      RoutingConfig routing = c.config(0).routing();
      assertThat(routing.scoring()).isEqualTo(RoutingConfig.Scoring.SIGMOID);
      assertThat(routing.renormalize()).isTrue();
      assertThat(routing.epsilon()).isEqualTo(0.25f);
      assertThat(routing.scalingFactor()).isEqualTo(2f);
      assertThat(c.config(0).intermediateSize()).isEqualTo(6);
      assertThat(c.config(0).activation()).isEqualTo(Activation.SILU);
      assertThat(c.config(2).activation().kind()).isEqualTo(Activation.Kind.SWIGLU_STEP);
      assertThat(c.config(2).activation().limit()).isEqualTo(5f);
      assertThat(c.config(2).sharedExpert().orElseThrow().activation().limit()).isEqualTo(3f);
      assertThat(c.config(2).sharedExpert().orElseThrow().intermediateSize()).isEqualTo(5);
      String block = "model.stack.2.";
      assertThat(c.weights(2).router().weight().get(3, 7))
          .isEqualTo(t.tensors.get(block + "moe.router.weight").get(7, 3));
      assertThat(c.weights(2).router().correctionBias().get(3))
          .isEqualTo(t.tensors.get(block + "moe.shift").get(1, 3));
      assertThat(c.weights(2).shared().mlp().up().plain().get(4, 1))
          .isEqualTo(t.tensors.get(block + "common.in.weight").get(9, 1));
    }
  }

  /** A clamp that a function does not have is not dropped. */
  @ParameterizedTest
  @ValueSource(strings = {"gelu", "gelu_pytorch_tanh"})
  void aClampOfAFunctionWithoutOneIsRefused(String activation) throws IOException {
    Path model = house().writeModel(dir.resolve("model"));
    Files.writeString(
        model.resolve(MoeCheckpoint.LAYOUT_FILE),
        HOUSE.replace("\"swiglu_step\"", "\"" + activation + "\""));
    assertThatThrownBy(() -> MoeCheckpoint.open(model))
        .isInstanceOf(CheckpointException.class)
        .hasMessageContainingAll("limit", activation);
  }

  /** The activation that config.json names is computed, or refused. */
  @Test
  void activationsOfFamiliesThatHaveOne() {
    ModelConfig gelu =
        new ModelConfig(
            "config.json", new ObjectMapper().createObjectNode().put("hidden_act", "gelu"));
    assertThatThrownBy(() -> KnownLayouts.all().get("step3p5").rules().block(gelu, 0))
        .hasMessageContainingAll("hidden_act", "gelu");
  }

  @Test
  void anExplicitLayoutComesBeforeTheFileBesideTheConfig() throws IOException {
    Path model = house().writeModel(dir.resolve("model"));
    Files.writeString(model.resolve(MoeCheckpoint.LAYOUT_FILE), HOUSE);
    Path other = dir.resolve("other.json");
    Files.writeString(
        other, "{\"layouts\": [" + HOUSE.replace("\"epsilon\": 0.25", "\"epsilon\": 0.5") + "]}");
    CheckpointOptions options =
        CheckpointOptions.DEFAULT.withLayout(CheckpointLayout.load(other).getFirst());
    try (MoeCheckpoint c = MoeCheckpoint.open(model, options)) {
      assertThat(c.config(0).routing().epsilon()).isEqualTo(0.5f);
    }
  }

  @Test
  void aTableThatSendsTokensNowhereIsRefused() throws IOException {
    for (long wrong : new long[] {-1, 4, Long.MAX_VALUE}) {
      TinyCheckpoint t = house();
      for (int layer : List.of(0, 2)) {
        String name = "model.stack." + layer + ".moe.table";
        t.tensors.remove("model.stack." + layer + ".moe.shift");
        t.put(name, DType.I64, 3, 2);
        Tensor table = t.tensors.get(name);
        for (int i = 0; i < 6; i++) {
          table.set(i % 4, i / 2, i % 2);
        }
        table.set(layer == 2 ? wrong : 3, 1, 1);
      }
      Path model = t.writeModel(dir.resolve("model" + wrong));
      Files.writeString(
          model.resolve(MoeCheckpoint.LAYOUT_FILE),
          HOUSE.replace(
              "\"correction_bias\": \"shift\", \"correction_bias_row\": 1",
              "\"token_experts\": \"table\", \"correction_bias\": \"shift\""));
      assertThatThrownBy(() -> MoeCheckpoint.open(model))
          .isInstanceOf(CheckpointException.class)
          .hasMessageContaining("layer 2")
          .hasMessageContaining("sends token 1 to expert");
    }
  }

  @Test
  void theTemplateInTheErrorIsALayout() throws IOException {
    TinyCheckpoint t = TinyCheckpoint.qwen3().with("model_type", "nobody_knows");
    Path model = t.writeModel(dir.resolve("model"));
    String message = "";
    try (MoeCheckpoint c = MoeCheckpoint.open(model)) {
      assertThat(c).isNull();
    } catch (CheckpointException e) {
      message = e.getMessage();
    }
    Files.writeString(
        model.resolve(MoeCheckpoint.LAYOUT_FILE), message.substring(message.indexOf("{\n")));
    try (MoeCheckpoint c =
        MoeCheckpoint.open(
            t.with("mlp_layer_types", List.of("dense", "sparse", "sparse")).writeModel(model))) {
      assertThat(c.layers()).containsExactly(1, 2);
    }
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      quoteCharacter = '`',
      value = {
        "\"blocks\": [\"stack.{L}.moe\"] | \"block\": [\"stack.{L}.moe\"] | unknown keys [block]",
        "\"stack.{L}.moe\" | \"stack.moe\" | layers.{L}.mlp",
        "\"stack.{L}.moe\" | 7 | blocks[0] is '7'",
        "\"top_k\" | \"topk\" | config has unknown keys [topk]",
        "\"in_out\" | \"sideways\" | one of [out_in, in_out, by_shape]",
        "\"listed\" | \"list\" | moe_layers has unknown keys [list]",
        "\"model_type\": \"house_moe\" | \"model_type\": \"house_moe\", \"extends\": \"no_such\" | a known model_type",
        "\"bank.{E}.u\" | \"bank.u\" | must contain {E} once",
        "\"ignored\": [\"picture.\"] | \"ignored\": true | ignored is 'true'",
      })
  void mistakesAreNamed(String part, String mistake, String message) throws IOException {
    assertThat(HOUSE).contains(part);
    Path file = dir.resolve("layout.json");
    Files.writeString(file, HOUSE.replace(part, mistake));
    assertThatThrownBy(() -> CheckpointLayout.load(file))
        .isInstanceOf(CheckpointException.class)
        .hasMessageContaining("layout.json")
        .hasMessageContaining(message);
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      quoteCharacter = '`',
      value = {
        "picks | none | lacks 'picks'",
        "picks | \"two\" | 'picks' is two, must be an integer",
        "old_width | [] | 'old_width' is a JSON ARRAY",
        "limits | [0, 0, -1] | not negative",
        "which | \"0;2\" | layer numbers with commas",
        "factor | [] | 'factor' is a JSON ARRAY",
      })
  void whatTheConfigSaysIsChecked(String key, String value, String message) throws IOException {
    TinyCheckpoint t = house();
    if (value.equals("none")) {
      t.without(key);
    } else {
      t.with(key, new ObjectMapper().readValue(value, Object.class));
    }
    Path model = t.writeModel(dir.resolve("model"));
    Files.writeString(model.resolve(MoeCheckpoint.LAYOUT_FILE), HOUSE);
    assertThatThrownBy(() -> MoeCheckpoint.open(model))
        .isInstanceOf(CheckpointException.class)
        .hasMessageContaining(message);
  }

  @Test
  void everyKnownFamilyIsWrittenInThisForm() {
    Map<String, CheckpointLayout> known = KnownLayouts.all();
    assertThat(known).hasSizeGreaterThan(40);
    known.forEach((type, layout) -> assertThat(layout.modelType()).isEqualTo(type));
    assertThat(KnownLayouts.json()).containsOnlyKeys(known.keySet());
  }
}
