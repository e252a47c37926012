package io.moe4j.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.CheckpointException;
import io.moe4j.api.tensor.DType;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.function.Consumer;
import org.jspecify.annotations.NullUnmarked;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** What a config promises is in the files, and what decides who computes a token is finite. */
@NullUnmarked // a missing value fails the test where it is used
class PromisedTensorsTest {
  @TempDir Path dir;

  private static final int H = TinyCheckpoint.H;
  private static final int I = TinyCheckpoint.I;

  /** A checkpoint of a family in testdata, copied so that tensors can be left out. */
  private Path copy(String family, Consumer<TinyCheckpoint> bend) throws Exception {
    Path from = Fixtures.families().resolve(family).resolve("model");
    Path model = Files.exists(from) ? from : Fixtures.model(family);
    TinyCheckpoint t = new TinyCheckpoint();
    new com.fasterxml.jackson.databind.ObjectMapper()
        .readTree(model.resolve("config.json").toFile())
        .properties()
        .forEach(e -> t.config.put(e.getKey(), e.getValue()));
    try (java.util.stream.Stream<Path> files = Files.list(model)) {
      for (Path file : files.filter(f -> f.toString().endsWith(".safetensors")).toList()) {
        SafetensorsFile.open(file, java.lang.foreign.Arena.ofAuto())
            .tensors()
            .forEach(t.tensors::put);
      }
    }
    bend.accept(t);
    return t.writeModel(dir.resolve(family));
  }

  private static void without(TinyCheckpoint t, String part) {
    assertThat(t.tensors.keySet().removeIf(n -> n.contains(part))).as(part).isTrue();
  }

  @ParameterizedTest
  @CsvSource({
    "deepseek_v3, shared_experts., the shared expert",
    "deepseek_v3, layers.1.mlp.shared_experts., the shared expert",
    "deepseek_v3, layers.2.mlp.shared_experts., the shared expert",
    "deepseek_v3, e_score_correction_bias, a correction bias",
    "deepseek_v3, layers.2.mlp.gate.e_score_correction_bias, a correction bias",
    "deepseek_v3, layers.2.mlp.gate.weight, the router's weight",
    "deepseek_v3_fused, shared_experts., the shared expert",
    "deepseek_v2, shared_experts., the shared expert",
    "glm4_moe, shared_experts., the shared expert",
    "qwen2_moe, shared_expert., the shared expert",
    "qwen2_moe, shared_expert_gate, shared_expert_gate",
    "qwen2_moe_fused, shared_expert., the shared expert",
    "qwen3_next, shared_expert., the shared expert",
    "llama4_text, shared_expert., the shared expert",
    "nemotron_h, shared_experts., the shared expert",
    "nemotron_h_latent, fc1_latent_proj, fc1_latent_proj",
    "nemotron_h, e_score_correction_bias, a correction bias",
    "gpt_oss, router.bias, the router's bias",
    "gpt_oss, layers.1.mlp.router.bias, the router's bias",
    "gpt_oss, experts.gate_up_proj_bias, gate_up_proj_bias",
    "gpt_oss, layers.1.mlp.experts.down_proj_bias, down_proj_bias",
    "gpt_oss_mxfp4, router.bias, the router's bias"
  })
  void whatIsMissing(String family, String part, String named) throws Exception {
    MoeCheckpoint.open(copy(family, t -> {})).close();
    Path bent = copy(family, t -> without(t, part));
    assertThatThrownBy(() -> MoeCheckpoint.open(bent))
        .isInstanceOf(CheckpointException.class)
        .hasMessageContaining("lacks")
        .hasMessageContaining(named);
  }

  @Test
  void aSharedExpertOfAnotherWidth() throws Exception {
    for (int n : new int[] {0, 3}) {
      Path bent = copy("deepseek_v3", t -> t.with("n_shared_experts", n));
      assertThatThrownBy(() -> MoeCheckpoint.open(bent))
          .isInstanceOf(CheckpointException.class)
          .hasMessageContaining("shared_experts.up_proj.weight")
          .hasMessageContaining(n == 0 ? "promises none" : "promises the width");
    }
  }

  @Test
  void aConfigThatDoesNotSayLeavesItToTheFiles() throws Exception {
    try (MoeCheckpoint with =
        MoeCheckpoint.open(copy("deepseek_v3", t -> t.without("n_shared_experts")))) {
      assertThat(with.config(1).sharedExpert()).isPresent();
    }
  }

  @Test
  void aFamilyDescribedByHandPromisesWithTheUsualKeys() {
    CheckpointLayout mine =
        KnownLayouts.all().get("qwen3_moe").toBuilder("my_moe").sharedExpert("shared").build();
    for (String key :
        List.of("n_shared_experts", "num_shared_experts", "shared_expert_intermediate_size")) {
      TinyCheckpoint t = TinyCheckpoint.qwen3().with("model_type", "my_moe").with(key, 2);
      assertThatThrownBy(() ->
              MoeCheckpoint.open(t.writeModel(dir), CheckpointOptions.DEFAULT.withLayout(mine)))
          .as(key)
          .isInstanceOf(CheckpointException.class)
          .hasMessageContaining("lacks the shared expert");
      MoeCheckpoint.open(t.with(key, 0).writeModel(dir), CheckpointOptions.DEFAULT.withLayout(mine))
          .close();
    }
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "deepseek_v3 model.layers.1.mlp.gate.weight",
        "deepseek_v3 model.layers.2.mlp.gate.weight",
        "deepseek_v3 model.layers.2.mlp.gate.e_score_correction_bias",
        "gpt_oss model.layers.0.mlp.router.weight",
        "gpt_oss model.layers.1.mlp.router.bias",
        "mixtral model.layers.0.block_sparse_moe.gate.weight",
        "llama4_text model.layers.1.feed_forward.router.weight",
        "granitemoe model.layers.0.block_sparse_moe.router.layer.weight",
        "qwen3_moe model.layers.1.mlp.gate.weight"
      })
  void routersThatAreNotFinite(String familyAndTensor) throws Exception {
    String family = familyAndTensor.substring(0, familyAndTensor.indexOf(' '));
    String tensor = familyAndTensor.substring(familyAndTensor.indexOf(' ') + 1);
    for (double value :
        new double[] {Double.NaN, Double.POSITIVE_INFINITY, Double.NEGATIVE_INFINITY}) {
      Path bent =
          copy(
              family,
              t -> {
                io.moe4j.api.tensor.Tensor old = t.tensors.get(tensor);
                assertThat(old).as(tensor).isNotNull();
                t.put(tensor, old.dtype(), old.shape());
                t.tensors
                    .get(tensor)
                    .reshape(old.elementCount())
                    .set(value, old.elementCount() - 1);
              });
      assertThatThrownBy(() -> MoeCheckpoint.open(bent))
          .isInstanceOf(CheckpointException.class)
          .hasMessageContaining("router's")
          .hasMessageContaining("NaN or infinite");
    }
  }

  @Test
  void biasesAreVectorsOrRowsOfOne() {
    TinyCheckpoint t = gptOss();
    t.put("model.layers.0.mlp.router.bias", DType.BF16, 1, TinyCheckpoint.E);
    try (MoeCheckpoint model = MoeCheckpoint.open(t.writeModel(dir))) {
      assertThat(model.weights(0).router().bias().shape()).containsExactly(TinyCheckpoint.E);
    }
    for (long[] shape :
        new long[][] {{TinyCheckpoint.E, 1}, {2, TinyCheckpoint.E}, {1, 1, 4}, {1, 5}, {}}) {
      TinyCheckpoint wrong = gptOss();
      wrong.put("model.layers.0.mlp.router.bias", DType.BF16, shape);
      assertThatThrownBy(() -> MoeCheckpoint.open(wrong.writeModel(dir)))
          .isInstanceOf(CheckpointException.class)
          .hasMessageContaining("router.bias");
    }
  }

  private static TinyCheckpoint gptOss() {
    return TinyCheckpoint.gptOssMxfp4();
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "experts.gate_up_proj_bias",
        "experts.down_proj_bias",
        "router.bias",
        "router.weight"
      })
  void dtypesAreCheckedOnOpening(String name) {
    for (DType dtype : List.of(DType.I16, DType.U8, DType.F64, DType.F8_E4M3)) {
      TinyCheckpoint t = gptOss();
      String full = "model.layers.0.mlp." + name;
      t.put(full, dtype, t.tensors.get(full).shape());
      assertThatThrownBy(() -> MoeCheckpoint.open(t.writeModel(dir)))
          .as(dtype.name())
          .isInstanceOf(CheckpointException.class)
          .hasMessageContaining(name)
          .hasMessageContaining("F32, BF16 and F16");
    }
  }

  @Test
  void aSharedExpertHasOneDtype() throws Exception {
    for (String projection : List.of("gate_proj", "down_proj")) {
      Path bent =
          copy(
              "deepseek_v3",
              t -> {
                String name = "model.layers.1.mlp.shared_experts." + projection + ".weight";
                t.put(name, DType.F16, t.tensors.get(name).shape());
              });
      assertThatThrownBy(() -> MoeCheckpoint.open(bent))
          .isInstanceOf(CheckpointException.class)
          .hasMessageContaining("one dtype");
    }
  }

  @Test
  void aSharedExpertOfWidthZeroWithItsGate() {
    TinyCheckpoint t = TinyCheckpoint.qwen3().with("model_type", "qwen2_moe");
    t.with("shared_expert_intermediate_size", 0);
    for (int layer = 1; layer <= 2; layer++) {
      String block = "model.layers." + layer + ".mlp.";
      t.put(block + "shared_expert.gate_proj.weight", DType.BF16, 0, H);
      t.put(block + "shared_expert.up_proj.weight", DType.BF16, 0, H);
      t.put(block + "shared_expert.down_proj.weight", DType.BF16, H, 0);
      t.put(block + "shared_expert_gate.weight", DType.BF16, 1, H);
    }
    try (MoeCheckpoint model = MoeCheckpoint.open(t.writeModel(dir))) {
      assertThat(model.config(1).sharedExpert()).isEmpty();
      assertThat(model.weights(2).shared()).isNull();
    }
  }

  @Test
  void aClosedCheckpointSaysSo() {
    MoeCheckpoint model = MoeCheckpoint.open(TinyCheckpoint.qwen3().writeModel(dir));
    model.close();
    model.close();
    for (Runnable use :
        List.<Runnable>of(() -> model.weights(1), model::tensors, () -> model.weights(2))) {
      assertThatThrownBy(use::run)
          .isInstanceOf(IllegalStateException.class)
          .hasMessageContaining(dir.toString())
          .hasMessageContaining("closed");
    }
    assertThat(model.config(1).intermediateSize()).isEqualTo(I);
  }
}
