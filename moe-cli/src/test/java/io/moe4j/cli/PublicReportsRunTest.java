package io.moe4j.cli;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.SafetensorsFile;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Inputs that other systems got wrong by public reports, through the command and its backend. */
final class PublicReportsRunTest {
  private static final Path CASES = Cli.FIXTURES.resolveSibling("cases");

  @TempDir Path dir;

  private Path output() {
    return dir.resolve("out.safetensors");
  }

  private Cli.Result run(String name, String... more) {
    Path at = CASES.resolve(name);
    List<String> command =
        new ArrayList<>(
            List.of("run", "--model", at.resolve("model").toString(), "--layer", "all"));
    if (Files.isDirectory(at.resolve("adapter"))) {
      command.addAll(List.of("--adapter", "a=" + at.resolve("adapter")));
    }
    command.addAll(List.of("--input", at.resolve("input.safetensors") + ":x"));
    command.addAll(List.of("--output", output().toString()));
    command.addAll(List.of(more));
    return Cli.run(command.toArray(String[]::new));
  }

  @ParameterizedTest
  @CsvSource({
    "s01-lora_B_layout-marker,",
    "s02-unsloth-before-marker, --lora-b-layout=grouped_by_expert",
    "s05-wrapper-segment_fsdp_wrapped,",
    "s06-orig_mod-prefix-alpha_pattern,",
    "v01-index-overlay,",
    "v02-index-lists-absent-tensor,",
    "v04-unknown-dtype-elsewhere,",
    "v05-shared-expert-of-width-0,",
    "v06-sharded-adapter,",
    "v07-duplicate-json-key,",
    "m06-mlx-adapter,",
    "v09-router-lora, --router-lora",
    "v09-router-lora, --router-lora --backend=cpu-reference"
  })
  void rightResults(String name, String options) throws Exception {
    run(name, options == null ? new String[0] : options.split(" ", -1)).succeeds();
    try (SafetensorsFile got = SafetensorsFile.open(output());
        SafetensorsFile right =
            SafetensorsFile.open(CASES.resolve(name).resolve("expected.safetensors"))) {
      assertThat(right.tensors()).isNotEmpty();
      right
          .tensors()
          .forEach((tensor, expected) -> {
            Tensor y = got.tensor(tensor);
            double difference = 0;
            double norm = 0;
            for (int t = 0; t < y.size(0); t++) {
              for (int i = 0; i < y.size(1); i++) {
                difference += Math.pow(y.get(t, i) - expected.get(t, i), 2);
                norm += Math.pow(expected.get(t, i), 2);
              }
            }
            assertThat(Math.sqrt(difference / norm)).as(name + " " + tensor).isLessThan(1e-5);
          });
    }
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        "s02-unsloth-before-marker|4|--lora-b-layout decides",
        "s03-zero3-all-empty|4|ZeRO-3",
        "s07-moe-path|4|'moe' of layer 0",
        "s09-shared-expert-missing|3|lacks the shared expert",
        "s11-nan-correction-bias|3|NaN or infinite",
        "m01-quantised-hqq|3|quant_method 'hqq'",
        "m03-git-lfs-pointer|3|git lfs pull",
        "m05-deepseek-ocr-language_config|3|norm_topk_prob",
        "m08-second-root|3|--root says which",
        "v09-router-lora|4|--router-lora"
      })
  void refusals(String name, int code, String words) {
    Cli.Result r = run(name);
    assertThat(r.code()).as(r.err()).isEqualTo(code);
    assertThat(r.error()).contains(words).doesNotContain("AdapterPolicy");
    assertThat(output()).doesNotExist();
  }

  @Test
  void oneOfSeveralModels() {
    run("m08-second-root", "--root", "model.").succeeds();
    Cli.Result r =
        Cli.run("inspect", CASES.resolve("m08-second-root/model").toString(), "--root", "model");
    assertThat(r.succeeds().out()).contains("names begin with model.");
    assertThat(run("m08-second-root", "--root", "draft.").error()).contains("'model.eagle.'");
  }

  /** What was read of a folder that holds a model twice, or copies, or less than it lists. */
  @Test
  void notesOfTheModelAreSaid() {
    assertThat(run("n01-single-file-beside-index").succeeds().err())
        .contains("model.safetensors and model.safetensors.index.json are both there");
    assertThat(run("v01-index-overlay").succeeds().err()).contains("the index decides");
    assertThat(run("v02-index-lists-absent-tensor").succeeds().err()).contains("lm_head.weight");
    assertThat(run("n01-single-file-beside-index", "--quiet").succeeds().err()).isEmpty();
  }

  @Test
  void whatIsLeftOutIsNamed() {
    Cli.Result r = run("s07-moe-path", "--policy", "lenient");
    assertThat(r.succeeds().err())
        .containsIgnoringWhitespaces("8 of 8 tensors were left out")
        .containsIgnoringWhitespaces("neither in its MoE block")
        .doesNotContain("attention, embedding");
  }

  @Test
  void shardedAdaptersAndFoldersAreInspected() throws Exception {
    Path adapter = CASES.resolve("v06-sharded-adapter/adapter");
    assertThat(Cli.run("inspect", adapter.toString()).succeeds().out())
        .contains("model.layers.0.mlp.experts.0.up_proj.lora_A.weight");
    Path above = Files.createDirectories(dir.resolve("above"));
    Files.createSymbolicLink(above.resolve("default"), adapter);
    assertThat(Cli.run("inspect", above.toString()).error()).contains("one folder down");
    Cli.Result r =
        Cli.run(
            "run",
            "--model",
            CASES.resolve("v06-sharded-adapter/model").toString(),
            "--adapter",
            "a=" + above,
            "--input",
            CASES.resolve("v06-sharded-adapter/input.safetensors") + ":x",
            "--output",
            output().toString());
    assertThat(r.error()).contains("one folder down");
  }

  @Test
  void refusalsRecommendWhatHelps() {
    Cli.Result r = run("v09-router-lora", "--policy", "strict");
    assertThat(r.error()).contains("--policy lenient").contains("--router-lora");
    assertThat(run("s03-zero3-all-empty", "--policy", "lenient").error())
        .contains("no policy")
        .doesNotContain("--policy");
  }

  @Test
  void tensorsThatCannotBeReadAreListed() {
    Cli.Result r =
        Cli.run(
            "inspect",
            CASES.resolve("v04-unknown-dtype-elsewhere/model/model.safetensors").toString());
    assertThat(r.succeeds().out()).contains("model.visual.freqs").contains("C64");
    String json =
        Cli.run(
                "inspect",
                CASES.resolve("v04-unknown-dtype-elsewhere/model/model.safetensors").toString(),
                "--json")
            .succeeds()
            .json()
            .path("tensors")
            .findValuesAsText("dtype")
            .toString();
    assertThat(json).contains("C64");
  }
}
