package io.moe4j.cli;

import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.tensor.DType;
import io.moe4j.checkpoint.MoeCheckpoint;
import io.moe4j.cli.json.Json;
import io.moe4j.oracle.FoundBackend;
import io.moe4j.oracle.MoeOracle;
import io.moe4j.oracle.Selection;
import java.io.PrintWriter;
import java.nio.file.Path;
import java.util.concurrent.Callable;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParentCommand;

/** {@code moe backends}. */
@Command(
    name = "backends",
    description =
        "List every backend with its jar and version: which one is chosen, and why not the others."
            + " Ends with exit code 5 if none fits.")
final class BackendsCommand implements Callable<Integer> {
  private static final int LORA_SLOTS = 8;
  private static final int LORA_RANK = 64;

  /** What a table shows of a plugin's words; JSON has more. */
  private static final int MAX_DESCRIPTION = 500;

  @ParentCommand private Moe moe;

  @Option(
      names = "--model",
      paramLabel = "DIR",
      description =
          "Choose for this checkpoint. Default: for a layer like Qwen3-30B-A3B's, in BF16.")
  private @Nullable Path model;

  @Mixin private LayoutOption layout = new LayoutOption();

  @Option(
      names = "--layer",
      paramLabel = "N",
      completionCandidates = Candidates.OneLayer.class,
      description = "Which MoE layer. Default: the first.")
  private @Nullable Integer layer;

  @Option(
      names = "--lora",
      description =
          "Choose for a layer with adapters ("
              + LORA_SLOTS
              + " slots, rank up to "
              + LORA_RANK
              + ").")
  private boolean lora;

  @Mixin private OracleOptions oracleOptions = new OracleOptions();

  @Option(names = "--json", description = "Print JSON.")
  private boolean json;

  @SuppressWarnings("NullAway.Init") // picocli sets moe
  BackendsCommand() {}

  @Override
  public Integer call() {
    MoeConfig config = config();
    if (lora) {
      config = config.toBuilder().lora(new LoraConfig(LORA_SLOTS, LORA_RANK)).build();
    }
    try (MoeOracle oracle = oracleOptions.discover()) {
      // As moe run gives hidden states to a layer of this machine.
      config =
          config.toBuilder()
              .inputDtype(
                  HiddenDtype.choose(oracle, config, oracleOptions.backend, config.inputDtype()))
              .build();
      Selection selection =
          oracle.evaluate(config, oracle.catalog().detectPlatform(), oracleOptions.backend);
      if (json) {
        ObjectNode root = Json.document("backends");
        root.setAll(SelectionJson.of(selection));
        root.put("layer_of", layerOf());
        moe.terminal().json(root);
      } else {
        print(selection);
      }
      return selection.chosen().isPresent() ? ExitCode.OK : ExitCode.UNSUPPORTED;
    }
  }

  private void print(Selection selection) {
    PrintWriter out = moe.terminal().out();
    out.println("For " + layerOf() + (lora ? ", with adapters" : "") + ":");
    out.println(selection.explain());
    out.println();
    TextTable table =
        new TextTable("backend", "computes on", "takes", "adapters", "what it is", "jar");
    for (var c : selection.candidates()) {
      FoundBackend b = c.backend();
      table.row(
          b.name(),
          b.deviceType(),
          b.activationFormat(),
          b.supportsLora() ? "yes" : "no",
          Text.cut(b.description(), MAX_DESCRIPTION),
          b.origin().location());
    }
    out.print(table.render(""));
    selection
        .platform()
        .absent()
        .forEach((type, why) -> out.println("no " + type + " device: " + why));
  }

  private String layerOf() {
    return model == null
        ? "a layer like Qwen3-30B-A3B's"
        : (layer == null ? "the first MoE layer" : "layer " + layer) + " of " + model;
  }

  /** A layer like those of a released model, to ask backends about. */
  static MoeConfig defaultConfig() {
    return MoeConfig.builder(2048, 768, 128, 8)
        .inputDtype(DType.BF16)
        .weightDtype(DType.BF16)
        .build();
  }

  private MoeConfig config() {
    if (model == null) {
      if (layer != null) {
        throw CliException.usage("--layer goes with --model DIR");
      }
      return defaultConfig();
    }
    RunInput.requireDirectory("--model", model);
    try (MoeCheckpoint checkpoint = layout.open(model)) {
      int wanted = layer == null ? checkpoint.layers().getFirst() : layer;
      if (!checkpoint.layers().contains(wanted)) {
        throw CliException.usage(
            "--layer is "
                + wanted
                + "; the MoE layers of "
                + model
                + " are "
                + checkpoint.layers());
      }
      return checkpoint.config(wanted);
    }
  }
}
