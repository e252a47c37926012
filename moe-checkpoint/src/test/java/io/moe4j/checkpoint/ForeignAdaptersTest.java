package io.moe4j.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.CheckpointException;
import io.moe4j.api.config.Activation;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.AdapterPolicy.FusedOrder;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.jspecify.annotations.NullUnmarked;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/**
 * Writers of files under PEFT's names that are not PEFT, and what other trainers leave in folders:
 * a wrong reading must not pass for a right one, and a refusal says what was found.
 */
@NullUnmarked // a missing value fails the test where it is used
@SuppressWarnings("NarrowCalculation") // products of small constants as shapes
class ForeignAdaptersTest extends AdapterTestBase {
  private static final int R = 3;

  /** The keys that Megatron-Bridge writes; PEFT has more, and its version. */
  private static TinyCheckpoint megatronBridge() {
    TinyCheckpoint t =
        adapter(R, 6)
            .without("peft_version")
            .with("auto_mapping", null)
            .with("fan_in_fan_out", false)
            .with("inference_mode", true)
            .with("init_lora_weights", true)
            .with("task_type", "CAUSAL_LM")
            .with("use_dora", false)
            .with("use_rslora", false);
    // A is the output side of each expert, B the input side, side by side by expert.
    return t.with("target_parameters", List.of(EXPERTS + ".down_proj", EXPERTS + ".gate_up_proj"))
        .pair(EXPERTS, DType.F32, d(E * R, H), d(I, E * R))
        .pair(EXPERTS + ".base_layer", DType.F32, d(E * R, 2 * I), d(H, E * R));
  }

  /** dW of expert e is the transpose of its columns of B times its rows of A. */
  private static void assertMegatronBridges(TinyCheckpoint t, LoraAdapter loaded, boolean grouped) {
    for (LoraTarget target : List.of(LoraTarget.GATE, LoraTarget.UP, LoraTarget.DOWN)) {
      boolean down = target == LoraTarget.DOWN;
      String module = down ? EXPERTS : EXPERTS + ".base_layer";
      int first = target == LoraTarget.UP ? I : 0;
      Tensor a = a(t, module);
      Tensor b = b(t, module);
      assertDelta(
          loaded.layer(1).get(target),
          E,
          down ? H : I,
          down ? I : H,
          R,
          2,
          (e, j, i) -> b.get(i, grouped ? e * R + j : j * E + e),
          (e, o, j) -> a.get(e * R + j, first + o));
    }
  }

  /** PEFT folds B by rank, Megatron-Bridge by expert, and nothing in its file says so. */
  @Test
  void anUnknownWriterDoesNotPassForPeft() {
    TinyCheckpoint t = megatronBridge();
    for (AdapterPolicy policy : List.of(AdapterPolicy.DEFAULT, AdapterPolicy.LENIENT)) {
      assertThatThrownBy(() -> load(t, qwen3(), policy))
          .isInstanceOf(AdapterRefusedException.class)
          .hasMessageContaining("for 4 of its 4 tensors: adapter_config.json has no peft_version")
          .hasMessageContaining("GROUPED_BY_EXPERT for files of Megatron-Bridge");
    }
    AdapterPolicy grouped = AdapterPolicy.DEFAULT.withLoraBOrder(FusedOrder.GROUPED_BY_EXPERT);
    assertMegatronBridges(t, load(t, qwen3(), grouped).adapter(), true);
    AdapterPolicy ranks = AdapterPolicy.DEFAULT.withLoraBOrder(FusedOrder.RANK_MAJOR);
    assertMegatronBridges(t, load(t, qwen3(), ranks).adapter(), false);
  }

  /** What every PEFT writes, also the one of 0.17, which does not write its version. */
  @ParameterizedTest
  @CsvSource({"layers_pattern", "loftq_config", "megatron_core", "peft_version"})
  void whatOnlyPeftWritesTells(String key) {
    TinyCheckpoint t = megatronBridge().with(key, key.equals("peft_version") ? "0.19.1" : null);
    assertMegatronBridges(t, load(t, qwen3()), false);
  }

  /** NeMo Automodel folds as PEFT does, and leaves a file of its own beside. */
  @Test
  void automodelFollowsPeft() throws IOException {
    TinyCheckpoint t = megatronBridge();
    Path written = t.writeAdapter(dir);
    Files.writeString(written.resolve("automodel_peft_config.json"), "{}");
    assertMegatronBridges(t, load(written, qwen3(), AdapterPolicy.DEFAULT).adapter(), false);
  }

  /** Its two halves would be taken for alternating rows. */
  @Test
  void megatronBridgesHalvesDoNotPassForInterleaved() {
    AdapterTargetModel gptOss =
        model(
            "gpt_oss",
            MoeConfig.builder(H, I, E, 2).activation(Activation.SWIGLUOAI).expertBias(true));
    AdapterPolicy grouped = AdapterPolicy.DEFAULT.withLoraBOrder(FusedOrder.GROUPED_BY_EXPERT);
    assertThatThrownBy(() -> load(megatronBridge(), gptOss, grouped))
        .isInstanceOf(AdapterRefusedException.class)
        .hasMessageContaining("for 2 of its 4 tensors: Megatron-Bridge writes gate and up");
    // Unsloth's, by expert as well, alternate as the model does.
    TinyCheckpoint unsloth =
        megatronBridge().with("auto_mapping", java.util.Map.of("unsloth_fixed", true));
    Tensor rows = a(unsloth, EXPERTS + ".base_layer");
    assertThat(load(unsloth, gptOss, grouped).adapter().layer(1).get(LoraTarget.UP).b(2).get(5, 1))
        .isEqualTo(2 * rows.get(2 * R + 1, 2 * 5 + 1));
  }

  /** Columns of one rank have one order, but halves are no alternating rows either way. */
  @Test
  void oneRankDoesNotHideWhoWroteInterleavedFactors() {
    AdapterTargetModel gptOss =
        model(
            "gpt_oss",
            MoeConfig.builder(H, I, E, 2).activation(Activation.SWIGLUOAI).expertBias(true));
    TinyCheckpoint t = megatronBridge().with("r", 1).with("lora_alpha", 2);
    t.pair(EXPERTS, DType.F32, d(E, H), d(I, E))
        .pair(EXPERTS + ".base_layer", DType.F32, d(E, 2 * I), d(H, E));
    assertThatThrownBy(() -> load(t, gptOss))
        .isInstanceOf(AdapterRefusedException.class)
        .hasMessageContaining("for 2 of its 4 tensors: Megatron-Bridge writes gate and up")
        .hasMessageContaining("withLoraBOrder(RANK_MAJOR) says that PEFT");
    Tensor rows = a(t, EXPERTS + ".base_layer");
    Tensor columns = b(t, EXPERTS + ".base_layer");
    AdapterPolicy peft = AdapterPolicy.DEFAULT.withLoraBOrder(FusedOrder.RANK_MAJOR);
    assertDelta(
        load(t, gptOss, peft).adapter().layer(1).get(LoraTarget.UP),
        E,
        I,
        H,
        1,
        2,
        (e, j, i) -> columns.get(i, e),
        (e, o, j) -> rows.get(e, 2 * o + 1));
  }

  /** Factors under names of their trainer are not taken for weights of the block. */
  @ParameterizedTest
  @CsvSource({
    "base_model.model.model.layers.1.mlp.experts.lora_down_A",
    "base_model.model.model.layers.1.mlp.experts.lora_gate_and_up_B",
    "layers.1.mlp.experts.lora_gate_a",
    "base_model.model.model.layers.1.mlp.experts.0.up_proj.lora_a.weight"
  })
  void namesOfTrainers(String name) {
    TinyCheckpoint t = adapter(R, 6).put(name, DType.F32, E, R, H);
    assertThatThrownBy(() -> load(t, qwen3()))
        .isInstanceOf(AdapterRefusedException.class)
        .hasMessageContaining("a factor under a trainer's own name")
        .hasMessageContaining(name);
  }

  @ParameterizedTest
  @CsvSource({
    "adapter-f16.gguf, llama.cpp",
    "lit_model.pth.lora, LitGPT",
    "adapter_0.pt, pickled",
    "adapter_model.bin, pickled",
    "adapters.npz, mlx-lm",
    "adapters.safetensors, lora_parameters",
    "__0_0.distcp, Megatron",
    "zero_to_fp32.py, DeepSpeed"
  })
  void whatIsThereInstead(String file, String words) throws IOException {
    Files.write(dir.resolve(file), new byte[8]);
    assertThatThrownBy(() -> load(dir, qwen3(), AdapterPolicy.DEFAULT))
        .isInstanceOf(CheckpointException.class)
        .hasMessageContaining("adapter_config.json does not exist; " + file)
        .hasMessageContaining(words);
    if (!file.equals("adapters.safetensors")) {
      adapter(R, 6).writeAdapter(dir);
      Files.delete(dir.resolve("adapter_model.safetensors"));
      assertThatThrownBy(() -> load(dir, qwen3(), AdapterPolicy.DEFAULT))
          .isInstanceOf(CheckpointException.class)
          .hasMessageContaining("adapter_model.safetensors does not exist; " + file);
    }
  }

  @Test
  void aFileInPlaceOfAFolder() throws IOException {
    Path gguf = Files.writeString(dir.resolve("adapter"), "GGUF\u0003\0\0\0");
    assertThatThrownBy(() -> load(gguf, qwen3(), AdapterPolicy.DEFAULT))
        .isInstanceOf(CheckpointException.class)
        .hasMessageContaining("is not a directory")
        .hasMessageContaining("is a GGUF file");
    Path other = Files.writeString(dir.resolve("notes"), "x");
    assertThatThrownBy(() -> load(other, qwen3(), AdapterPolicy.DEFAULT))
        .hasMessageEndingWith("a directory with adapter_config.json");
  }
}
