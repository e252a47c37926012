package io.moe4j.cli;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.SafetensorsWriter;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** What a user says where neither shapes nor the config tell what a fused factor means. */
final class AdapterOptionsTest {
  private static final int E = 2;
  private static final int H = 4;

  @TempDir Path dir;
  private Path model;
  private Path adapter;

  private static Tensor ones(long... shape) {
    long n = 1;
    for (long s : shape) {
      n *= s;
    }
    float[] values = new float[Math.toIntExact(n)];
    java.util.Arrays.fill(values, 1f);
    return Tensor.ofFloats(values, shape);
  }

  /** Experts whose width is the hidden size. */
  @BeforeEach
  void files() throws IOException {
    model = Files.createDirectory(dir.resolve("model"));
    adapter = Files.createDirectory(dir.resolve("adapter"));
  }

  private void model(String config, String root, String block, boolean gated) throws IOException {
    Files.writeString(model.resolve("config.json"), config);
    Map<String, Tensor> t = new LinkedHashMap<>();
    String at = root + "layers.0." + block;
    t.put(at + ".gate.weight", ones(E, H));
    t.put(at + ".experts." + (gated ? "gate_up_proj" : "up_proj"), ones(E, gated ? 2 * H : H, H));
    t.put(at + ".experts.down_proj", ones(E, H, H));
    if (!gated) {
      t.put(at + ".gate.e_score_correction_bias", ones(E));
    }
    SafetensorsWriter.write(model.resolve("model.safetensors"), t, Map.of());
    Files.writeString(adapter.resolve("adapter_config.json"), "{\"r\": 1, \"lora_alpha\": 1}");
    SafetensorsWriter.write(
        adapter.resolve("adapter_model.safetensors"),
        Map.of(
            at + ".experts.lora_A.weight", ones(E, H), at + ".experts.lora_B.weight", ones(H, E)),
        Map.of());
  }

  private Cli.Result inspect(String... more) {
    String[] args = new String[4 + more.length];
    args[0] = "inspect";
    args[1] = adapter.toString();
    args[2] = "--model";
    args[3] = model.toString();
    System.arraycopy(more, 0, args, 4, more.length);
    return Cli.run(args);
  }

  @Test
  void theSideOfASquareParameter() throws IOException {
    model(
        """
        {"model_type": "qwen3_moe", "hidden_size": 4, "moe_intermediate_size": 4, "num_experts": 2,
         "num_experts_per_tok": 1, "num_hidden_layers": 1, "hidden_act": "silu"}
        """,
        "model.",
        "mlp",
        true);
    Cli.Result refused = inspect();
    assertThat(refused.code()).isEqualTo(ExitCode.ADAPTER_REFUSED);
    assertThat(refused.out()).contains("--fused-side").doesNotContain("AdapterPolicy");
    for (String side : new String[] {"dim1", "DIM2"}) {
      assertThat(inspect("--fused-side", side).succeeds().out()).contains("down");
    }
    assertThat(inspect("--fused-side", "dim3").error()).contains("--fused-side", "DIM1, DIM2");
  }

  /** Rank 1 has one order; that gate and up alternate is still a matter of who wrote the file. */
  @Test
  void whoWroteFactorsOfInterleavedRows() throws IOException {
    Files.writeString(
        adapter.resolve("adapter_config.json"),
        "{\"r\": 1, \"lora_alpha\": 1, \"target_parameters\": [\"experts.gate_up_proj\"]}");
    String experts = "model.layers.0.mlp.experts.lora_";
    SafetensorsWriter.write(
        adapter.resolve("adapter_model.safetensors"),
        Map.of(experts + "A.weight", ones(8, 192), experts + "B.weight", ones(96, 8)),
        Map.of());
    String[] arguments = {"inspect", adapter.toString(), "--model", Cli.fixture("gpt_oss/model")};
    Cli.Result refused = Cli.run(arguments);
    assertThat(refused.code()).as(refused.err()).isEqualTo(ExitCode.ADAPTER_REFUSED);
    assertThat(refused.out())
        .contains("--lora-b-layout rank_major says that PEFT")
        .doesNotContain("AdapterPolicy");
    String[] told = Arrays.copyOf(arguments, 6);
    told[4] = "--lora-b-layout";
    told[5] = "rank_major";
    assertThat(Cli.run(told).succeeds().out()).contains("2 tensors: 2 applied");
  }

  @Test
  void theParameterOfALonePair() throws IOException {
    model(
        """
        {"model_type": "nemotron_h", "hidden_size": 4, "moe_intermediate_size": 4,
         "n_routed_experts": 2, "num_experts_per_tok": 1, "num_hidden_layers": 1,
         "hybrid_override_pattern": "E", "mlp_hidden_act": "relu2", "norm_topk_prob": true,
         "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0, "n_shared_experts": 0}
        """,
        "backbone.",
        "mixer",
        false);
    Cli.Result refused = inspect("--fused-side", "dim2");
    assertThat(refused.code()).as(refused.err()).isEqualTo(ExitCode.ADAPTER_REFUSED);
    assertThat(refused.out()).contains("--single-target").doesNotContain("AdapterPolicy");
    for (String name : new String[] {"up_proj", "down_proj"}) {
      assertThat(inspect("--fused-side", "dim2", "--single-target", name).succeeds().out())
          .contains(name.substring(0, name.indexOf('_')));
    }
    assertThat(inspect("--single-target", "w9").out())
        .contains("--single-target is 'w9'", "[up_proj, down_proj]");
    assertThat(inspect("--single-target", " ").error()).contains("--single-target is empty");
  }
}
