package io.moe4j.cli;

import static java.util.Locale.ROOT;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.SharedExpertConfig.Combine;
import io.moe4j.checkpoint.AdapterConfig;
import io.moe4j.checkpoint.AdapterReport;
import io.moe4j.checkpoint.CheckpointDescription;
import io.moe4j.checkpoint.LoadProgress;
import io.moe4j.checkpoint.MoeCheckpoint;
import io.moe4j.checkpoint.PeftAdapter;
import io.moe4j.checkpoint.SafetensorsFile;
import io.moe4j.cli.json.Json;
import java.io.IOException;
import java.io.PrintWriter;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.Callable;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;
import picocli.CommandLine.ParentCommand;

/** {@code moe inspect}. */
@Command(
    name = "inspect",
    description = {
      "Say what a checkpoint, an adapter or a safetensors file holds.",
      "",
      "Of an adapter every tensor is accounted for: applied, skipped or refused, and why. That needs"
          + " the model it is for (--model). Ends with exit code 4 if the adapter would be refused."
    })
final class InspectCommand implements Callable<Integer> {
  private static final Pattern SHARD =
      Pattern.compile("adapter_model-\\d{5}-of-\\d{5}\\.safetensors");

  @ParentCommand private Moe moe;

  @Parameters(
      paramLabel = "PATH",
      description = "Folder of a checkpoint or of an adapter, or a safetensors file.")
  private Path path;

  @Option(
      names = "--model",
      paramLabel = "DIR",
      description = "The checkpoint that an adapter is for.")
  private @Nullable Path model;

  @Mixin private AdapterOptions adapterOptions = new AdapterOptions();

  @Option(names = "--json", description = "Print JSON.")
  private boolean json;

  @SuppressWarnings("NullAway.Init") // picocli sets them
  InspectCommand() {}

  @Override
  public Integer call() {
    if (Files.isRegularFile(path)) {
      RunInput.requireFile(path);
      requireNoModel("is a file");
      return file();
    }
    RunInput.requireDirectory("PATH", path);
    if (Files.exists(path.resolve(AdapterConfig.FILE))) {
      return model == null ? adapterAlone() : adapter(model);
    }
    if (Files.exists(path.resolve("config.json"))) {
      requireNoModel("is a checkpoint");
      return checkpoint();
    }
    throw CliException.badInput(
        path
            + " holds neither config.json (a checkpoint) nor "
            + AdapterConfig.FILE
            + " (an adapter)"
            + oneFolderDown()
            + ".");
  }

  private void requireNoModel(String what) {
    if (model != null) {
      throw CliException.usage(
          "--model is the checkpoint that an adapter is for; " + path + " " + what);
    }
  }

  private String oneFolderDown() {
    try (Stream<Path> all = Files.list(path)) {
      return all.filter(p ->
              Files.exists(p.resolve(AdapterConfig.FILE)) || Files.exists(p.resolve("config.json")))
          .sorted()
          .findFirst()
          .map(p -> "; one folder down " + p + " does")
          .orElse("");
    } catch (IOException | UncheckedIOException e) {
      return "";
    }
  }

  private int checkpoint() {
    try (MoeCheckpoint checkpoint =
        MoeCheckpoint.open(path, adapterOptions.checkpoint(LoadProgress.NONE))) {
      CheckpointDescription d = checkpoint.describe();
      if (json) {
        moe.terminal().json(json(d));
      } else {
        print(d);
      }
      return ExitCode.OK;
    }
  }

  private void print(CheckpointDescription d) {
    PrintWriter out = moe.terminal().out();
    out.println(Text.line(d.directory() + ": checkpoint of model_type " + d.modelType()));
    out.println(
        "  "
            + d.tensors()
            + " tensors in "
            + d.files().size()
            + (d.files().size() == 1 ? " file, " : " files, ")
            + Text.bytes(d.bytes())
            + (d.root().isEmpty() ? "" : ", names begin with " + Text.line(d.root())));
    out.println("  " + d.numLayers() + " layers, " + d.layers().size() + " of them MoE:");
    // Layers that are alike share a line.
    Map<String, List<CheckpointDescription.Layer>> alike = new LinkedHashMap<>();
    for (CheckpointDescription.Layer l : d.layers()) {
      alike.computeIfAbsent(text(l), _ -> new java.util.ArrayList<>()).add(l);
    }
    alike.forEach((text, layers) -> {
      long bytes = layers.stream().mapToLong(CheckpointDescription.Layer::bytes).sum();
      out.println("    layers " + ranges(layers) + " (" + Text.bytes(bytes) + ")");
      out.print(text);
    });
    d.notes().forEach(n -> out.println("  note: " + Text.line(n)));
  }

  private static String text(CheckpointDescription.Layer l) {
    MoeConfig c = l.config();
    String shared =
        c.sharedExpert()
            .map(s ->
                "shared expert: I="
                    + s.intermediateSize()
                    + (s.sigmoidGate() ? ", sigmoid gate" : "")
                    + (s.combine() == Combine.AVERAGE ? ", averaged with the routed experts" : "")
                    + (s.activation().equals(c.activation())
                        ? ""
                        : ", " + CheckpointDescription.activationInWords(s.activation())))
            .orElse("no shared expert");
    return String.format(
        ROOT,
        "      experts: E=%d top_k=%d H=%d I=%d%s, %s%s%n      routing: %s%n      activation: %s%n"
            + "      %s%n%s",
        c.numExperts(),
        c.topK(),
        c.hiddenSize(),
        c.intermediateSize(),
        c.latentSize() > 0 ? " latent D=" + c.latentSize() : "",
        expertFormats(l),
        (c.expertBias() ? ", with bias" : "")
            + (c.zeroExperts() > 0 ? ", " + c.zeroExperts() + " zero experts" : "")
            + (c.inputNorm().isPresent() ? ", input normalised" : "")
            + (c.outputBias() ? ", output bias" : ""),
        l.routing(),
        l.activation(),
        shared,
        l.isQuantized() ? weights(l) : "");
  }

  private static String expertFormats(CheckpointDescription.Layer l) {
    return l.weights().stream()
        .filter(w -> w.part().equals("experts"))
        .map(CheckpointDescription.WeightPart::format)
        .collect(Collectors.joining(" and "));
  }

  /** Which parts are quantised and which are not. */
  private static String weights(CheckpointDescription.Layer l) {
    StringBuilder s = new StringBuilder(String.format(ROOT, "      weights:%n"));
    for (CheckpointDescription.WeightPart w : l.weights()) {
      s.append(
          String.format(
              ROOT,
              "        %s: %s, %d %s like %s, %s%n",
              w.part().replace('_', ' '),
              w.format(),
              w.maps(),
              w.maps() == 1 ? "map" : "maps",
              Text.line(w.example()),
              Text.bytes(w.bytes())));
    }
    return s.toString();
  }

  private static void json(CheckpointDescription.WeightPart w, ObjectNode n) {
    QuantScheme q = w.scheme();
    n.put("part", w.part());
    n.put("format", w.format());
    n.put("dtype", w.dtype().name());
    n.put("quantized", !q.isNone());
    if (!q.isNone()) {
      n.put("code", q.format().name().toLowerCase(ROOT));
      n.put("bits", q.bits());
      n.put("scale_rows", q.scaleRows());
      n.put("group_size", q.scaleColumns());
      n.put("scale_format", q.scaleFormat().name().toLowerCase(ROOT));
      n.put("symmetric", q.symmetric());
      n.put("act_order", q.actOrder());
      n.put("activations", q.activations().toString());
    }
    n.put("maps", w.maps());
    n.put("example", w.example());
    n.put("bytes", w.bytes());
  }

  private static String ranges(List<CheckpointDescription.Layer> layers) {
    StringBuilder s = new StringBuilder();
    for (int i = 0; i < layers.size(); ) {
      int j = i;
      while (j + 1 < layers.size() && layers.get(j + 1).index() == layers.get(j).index() + 1) {
        j++;
      }
      s.append(s.isEmpty() ? "" : ", ").append(layers.get(i).index());
      s.append(j > i ? "-" + layers.get(j).index() : "");
      i = j + 1;
    }
    return s.toString();
  }

  private static ObjectNode json(CheckpointDescription d) {
    ObjectNode root = Json.document("inspect.checkpoint");
    root.put("kind", "checkpoint");
    root.put("directory", d.directory().toString());
    root.put("model_type", d.modelType());
    root.put("root", d.root());
    root.put("num_layers", d.numLayers());
    root.put("tensors", d.tensors());
    root.put("bytes", d.bytes());
    ArrayNode files = root.putArray("files");
    for (CheckpointDescription.File f : d.files()) {
      files.addObject().put("name", f.name()).put("bytes", f.bytes()).put("tensors", f.tensors());
    }
    ArrayNode layers = root.putArray("moe_layers");
    for (CheckpointDescription.Layer l : d.layers()) {
      MoeConfig c = l.config();
      ObjectNode n = layers.addObject();
      n.put("layer", l.index());
      n.put("num_experts", c.numExperts());
      n.put("top_k", c.topK());
      n.put("hidden_size", c.hiddenSize());
      n.put("intermediate_size", c.intermediateSize());
      n.put("latent_size", c.latentSize());
      n.put("dtype", c.weightDtype().name());
      n.put("expert_bias", c.expertBias());
      n.put("zero_experts", c.zeroExperts());
      n.put("input_norm", c.inputNorm().isPresent());
      n.put("output_bias", c.outputBias());
      n.put("routing", l.routing());
      n.put("activation", l.activation());
      c.sharedExpert()
          .ifPresent(s ->
              n.putObject("shared_expert")
                  .put("intermediate_size", s.intermediateSize())
                  .put("sigmoid_gate", s.sigmoidGate())
                  .put("combine", s.combine().name().toLowerCase(ROOT)));
      n.put("bytes", l.bytes());
      n.put("quantized", l.isQuantized());
      ArrayNode weights = n.putArray("weights");
      l.weights().forEach(w -> json(w, weights.addObject()));
    }
    ArrayNode notes = root.putArray("notes");
    d.notes().forEach(notes::add);
    return root;
  }

  private int adapter(Path modelDir) {
    RunInput.requireDirectory("--model", modelDir);
    try (MoeCheckpoint checkpoint =
        MoeCheckpoint.open(modelDir, adapterOptions.checkpoint(LoadProgress.NONE))) {
      AdapterReport r =
          PeftAdapter.inspect(path, checkpoint.adapterTarget(), adapterOptions.policy());
      if (json) {
        moe.terminal().json(AdapterText.json(r));
      } else {
        AdapterText.print(r, moe.terminal().out());
      }
      return r.accepted() ? ExitCode.OK : ExitCode.ADAPTER_REFUSED;
    }
  }

  /** Without the model nobody can say what applies: names and shapes only. */
  private int adapterAlone() {
    AdapterConfig config = AdapterConfig.read(path);
    Map<String, String> tensors = new TreeMap<>();
    for (Path weights : weights(config)) {
      try (SafetensorsFile file = SafetensorsFile.open(weights)) {
        tensors.putAll(described(file));
      }
    }
    if (json) {
      ObjectNode root = Json.document("inspect.adapter");
      root.put("kind", "adapter");
      root.put("directory", path.toString());
      root.set("config", AdapterText.config(config));
      root.set("tensors", tensors(tensors));
      root.put("note", "give --model DIR to learn what is applied");
      moe.terminal().json(root);
    } else {
      PrintWriter out = moe.terminal().out();
      out.println(Text.line(path.toString()) + ": " + AdapterText.words(config));
      out.print(table(tensors));
      out.println(
          "Which of these are applied depends on the model: moe inspect "
              + Text.line(path.toString())
              + " --model DIR");
    }
    return ExitCode.OK;
  }

  /** One file, or shards. */
  private List<Path> weights(AdapterConfig config) {
    boolean mlx = config.form() == AdapterConfig.Form.MLX;
    Path single = path.resolve(mlx ? "adapters.safetensors" : "adapter_model.safetensors");
    if (!mlx && !Files.exists(single)) {
      try (Stream<Path> all = Files.list(path)) {
        List<Path> shards =
            all.filter(p -> SHARD.matcher(String.valueOf(p.getFileName())).matches())
                .sorted()
                .toList();
        if (!shards.isEmpty()) {
          return shards;
        }
      } catch (IOException | UncheckedIOException e) {
        throw CliException.badInput(path + " cannot be listed: " + e);
      }
    }
    RunInput.requireFile(single);
    return List.of(single);
  }

  private int file() {
    try (SafetensorsFile file = SafetensorsFile.open(path)) {
      if (json) {
        ObjectNode root = Json.document("inspect.file");
        root.put("kind", "safetensors");
        root.put("file", path.toString());
        root.put("bytes", file.fileSize());
        ObjectNode metadata = root.putObject("metadata");
        file.metadata().forEach(metadata::put);
        root.set("tensors", tensors(described(file)));
        moe.terminal().json(root);
      } else {
        PrintWriter out = moe.terminal().out();
        out.println(
            Text.line(path.toString())
                + ": safetensors file, "
                + described(file).size()
                + " tensors, "
                + Text.bytes(file.fileSize()));
        out.print(table(described(file)));
      }
      return ExitCode.OK;
    }
  }

  /** Every tensor's dtype and shape, those included that cannot be read here. */
  private static Map<String, String> described(SafetensorsFile file) {
    Map<String, String> all = new TreeMap<>(file.opaque());
    file.tensors().forEach((name, t) -> all.put(name, t.dtype() + Arrays.toString(t.shape())));
    return all;
  }

  private static String table(Map<String, String> tensors) {
    TextTable table = new TextTable("tensor", "dtype", "shape");
    tensors.forEach(
        (name, t) -> table.row(name, t.substring(0, t.indexOf('[')), t.substring(t.indexOf('['))));
    return table.render("  ");
  }

  private static ArrayNode tensors(Map<String, String> tensors) {
    ArrayNode all = Json.array();
    tensors.forEach((name, t) -> {
      ObjectNode n = all.addObject();
      n.put("name", name);
      n.put("dtype", t.substring(0, t.indexOf('[')));
      ArrayNode shape = n.putArray("shape");
      Arrays.stream(t.substring(t.indexOf('[') + 1, t.length() - 1).split(", ", -1))
          .filter(size -> !size.isEmpty())
          .forEach(size -> shape.add(Long.parseLong(size)));
    });
    return all;
  }
}
