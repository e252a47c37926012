package io.moe4j.cli;

import static java.util.Locale.ROOT;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.api.comm.RankInfo;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.AdapterReport;
import io.moe4j.checkpoint.MoeCheckpoint;
import io.moe4j.checkpoint.SafetensorsFile;
import io.moe4j.checkpoint.SafetensorsWriter;
import io.moe4j.cli.json.Json;
import io.moe4j.oracle.MoeOracle;
import java.io.PrintWriter;
import java.lang.foreign.Arena;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParentCommand;

/** {@code moe run}. */
@Command(
    name = "run",
    description = {
      "Run MoE layers of a checkpoint over hidden states, with any mix of adapters.",
      "",
      "In one of several processes (torchrun, srun, a LeaderWorkerSet, or --ranks): all share each"
          + " layer, each on a GPU of its own or all on the host, and each brings a part of the tokens,"
          + " or all of them (--replicated), and checks it; rank 0 reports.",
      "",
      "Without --model: run the bundled sample and check it against recorded results.",
      "",
      "With --model: the output file holds, for each layer N, layers.N.output F32 [T, H] (the whole"
          + " MoE block, shared experts included), layers.N.topk_ids I32 [T, top_k] and"
          + " layers.N.topk_weights F32 [T, top_k]. It is written beside its place and moved there"
          + " when it is complete."
    })
final class RunCommand implements Callable<Integer> {
  @ParentCommand private Moe moe;

  @Option(
      names = "--model",
      paramLabel = "DIR",
      description = "Hugging Face checkpoint: config.json and safetensors files.")
  private @Nullable Path model;

  @Option(
      names = "--layer",
      paramLabel = "N|all",
      completionCandidates = Candidates.Layers.class,
      description =
          "Which MoE layer to run. With 'all' each layer gets the same input. Default: the first.")
  private @Nullable String layer;

  @Option(
      names = "--adapter",
      paramLabel = "NAME=DIR",
      description =
          "An adapter's folder (PEFT's form or mlx-lm's), and the name to use for it. Any number of times.")
  private List<String> adapters = new ArrayList<>();

  @Mixin private AdapterOptions adapterOptions = new AdapterOptions();

  @Option(
      names = "--input",
      paramLabel = "FILE:TENSOR",
      description = "Hidden states [T, H], F32, BF16 or F16, in a safetensors file.")
  private @Nullable String input;

  @Option(
      names = "--token-ids",
      paramLabel = "FILE:TENSOR",
      description =
          "The tokens' ids in the vocabulary, integers [T]: for models whose layers choose experts by"
              + " them (deepseek_v4).")
  private @Nullable String tokenIds;

  @Option(
      names = "--assign",
      paramLabel = "FILE:TENSOR|NAMES",
      description =
          "Which token uses which adapter: a tensor with one integer a token (0 = base, i = the i-th"
              + " --adapter), or names separated by commas ('base' = none), repeated over the tokens"
              + " if there are fewer. Default: all tokens use the one adapter there is.")
  private @Nullable String assign;

  @Option(
      names = "--output",
      paramLabel = "FILE",
      description =
          "The safetensors file to write. A regular file is replaced, a symbolic link followed;"
              + " devices and pipes are refused.")
  private @Nullable Path output;

  @Option(
      names = "--activations",
      paramLabel = "WHICH",
      converter = Activations.Reader.class,
      description =
          "Of a checkpoint whose activations are meant to be quantised as well (FP8, INT8, NVFP4):"
              + " unquantised (better, and what every backend does) or as-quantised (backends that"
              + " do not are refused). Adapters see them unquantised in either case. Default:"
              + " unquantised.")
  private Activations activations = Activations.UNQUANTISED;

  @Mixin private OracleOptions oracleOptions = new OracleOptions();

  @Mixin private RankOptions rankOptions = new RankOptions();

  @Option(names = "--json", description = "Print what was done as JSON.")
  private boolean json;

  @SuppressWarnings("NullAway.Init") // picocli sets them
  RunCommand() {}

  @Override
  public Integer call() {
    RankInfo me = rankOptions.info();
    ParallelConfig rank = rankOptions.parallel(me);
    RanksRun ranks = me.worldSize() == 1 ? null : new RanksRun(moe, oracleOptions, me, rank, json);
    if (ranks != null && activations != Activations.UNQUANTISED) {
      throw CliException.usage("--activations as-quantised is for one rank");
    }
    if (model == null) {
      if (layer != null
          || !adapters.isEmpty()
          || input != null
          || tokenIds != null
          || assign != null
          || activations != Activations.UNQUANTISED
          || output != null) {
        throw CliException.usage(
            "--layer, --adapter, --input, --token-ids, --assign, --activations and --output go with --model DIR; without --model"
                + " the bundled sample is run.");
      }
      return ranks != null ? ranks.sample() : new SampleRun(moe, oracleOptions, json).run();
    }
    if (input == null || output == null) {
      throw CliException.usage(
          "--model needs "
              + (input == null ? "--input FILE.safetensors:TENSOR" : "")
              + (input == null && output == null ? " and " : "")
              + (output == null ? "--output FILE.safetensors" : "")
              + ".");
    }
    return run(model, RunInput.Source.parse("--input", input), output, ranks);
  }

  private int run(Path modelDir, RunInput.Source source, Path target, @Nullable RanksRun ranks) {
    Map<String, Path> named = AdapterFiles.parse(adapters);
    RunInput.requireDirectory("--model", modelDir);
    RunInput.requireFile(source.file());
    Path file = OutputFile.requireFresh(target, inputs(modelDir, source, named));
    try (MoeOracle oracle = oracleOptions.discover();
        MoeCheckpoint checkpoint = open(modelDir);
        SafetensorsFile inputFile = SafetensorsFile.open(source.file())) {
      List<Integer> layers = layers(checkpoint);
      Tensor hidden =
          RunInput.hidden(inputFile, source, checkpoint.config(layers.getFirst()).hiddenSize());
      int tokens = Math.toIntExact(hidden.size(0));
      try (AdapterFiles files =
          AdapterFiles.load(moe, named, checkpoint.adapterTarget(), adapterOptions.policy())) {
        checkpoint.notes().forEach(n -> moe.note("model " + modelDir + ": " + n));
        files.remarks().forEach(moe::note);
        int[] assignment = RunInput.assignment(assign, files.names(), tokens);
        if (ranks != null) {
          return ranks.model(
              oracle, checkpoint, files, layers, hidden, ids(tokens), assignment, file);
        }
        LayerRun runner =
            new LayerRun(
                oracle,
                checkpoint,
                files.adapters(),
                oracleOptions.backend,
                activations,
                hidden.dtype(),
                tokens);
        if (tokenIds != null
            && layers.stream().noneMatch(n -> checkpoint.config(n).routing().byTokenId())) {
          moe.note("--token-ids is not used: these layers do not choose experts by token");
        }
        if (activations == Activations.AS_QUANTISED && runner.unquantised()) {
          moe.note(
              "--activations as-quantised changes nothing: no layer was made for quantised"
                  + " activations");
        }
        if (runner.inputDtype() != hidden.dtype()) {
          moe.note(runner.rounding(hidden.dtype()));
        }
        List<Done> done =
            runLayers(runner, checkpoint, layers, hidden, ids(tokens), assignment, file);
        report(checkpoint, source, files, assignment, done, target);
        return ExitCode.OK;
      }
    }
  }

  /** One layer that was run. */
  private record Done(int layer, LayerRun.Result result) {}

  private MoeCheckpoint open(Path directory) {
    try (Progress progress = Progress.start(moe, "Opening " + directory.getFileName(), -1)) {
      return MoeCheckpoint.open(
          directory, adapterOptions.checkpoint((what, at, total) -> progress.at(what, at, total)));
    }
  }

  private @Nullable Tensor ids(int tokens) {
    if (tokenIds == null) {
      return null;
    }
    RunInput.Source source = RunInput.Source.parse("--token-ids", tokenIds);
    RunInput.requireFile(source.file());
    try (SafetensorsFile file = SafetensorsFile.open(source.file())) {
      return RunInput.tokenIds(file, source, tokens);
    }
  }

  private List<Integer> layers(MoeCheckpoint checkpoint) {
    List<Integer> all = checkpoint.layers();
    if (layer == null) {
      return List.of(all.getFirst());
    }
    if (layer.equalsIgnoreCase("all")) {
      return all;
    }
    try {
      int n = Integer.parseInt(layer);
      if (all.contains(n)) {
        return List.of(n);
      }
    } catch (NumberFormatException e) {
      throw CliException.usage("--layer is \"" + layer + "\", must be a number or all");
    }
    throw CliException.usage(
        "--layer is " + layer + "; the MoE layers of " + checkpoint.directory() + " are " + all);
  }

  private List<Done> runLayers(
      LayerRun runner,
      MoeCheckpoint checkpoint,
      List<Integer> layers,
      Tensor hidden,
      @Nullable Tensor ids,
      int[] assignment,
      Path target) {
    Map<String, SafetensorsWriter.Spec> specs = new LinkedHashMap<>();
    for (int n : layers) {
      MoeConfig c = checkpoint.config(n);
      long t = hidden.size(0);
      specs.put(name(n, "output"), new SafetensorsWriter.Spec(DType.F32, t, c.hiddenSize()));
      specs.put(name(n, "topk_ids"), new SafetensorsWriter.Spec(DType.I32, t, c.topK()));
      specs.put(name(n, "topk_weights"), new SafetensorsWriter.Spec(DType.F32, t, c.topK()));
    }
    List<Done> done = new ArrayList<>();
    try (OutputFile out = OutputFile.create(target, specs);
        Progress progress = Progress.start(moe, "Layers", layers.size())) {
      for (int n : layers) {
        progress.doing("layer " + n);
        try (Arena arena = Arena.ofShared()) {
          LayerRun.Result r = runner.run(n, hidden, ids, assignment, arena, 0);
          out.put(name(n, "output"), r.output());
          out.put(name(n, "topk_ids"), r.topkIds());
          out.put(name(n, "topk_weights"), r.topkWeights());
          done.add(new Done(n, r.withoutTensors()));
        }
        progress.step();
      }
      out.commit();
    }
    return done;
  }

  private static String name(int layer, String what) {
    return "layers." + layer + "." + what;
  }

  private List<Path> inputs(Path modelDir, RunInput.Source source, Map<String, Path> named) {
    List<Path> all = new ArrayList<>(List.of(modelDir, source.file()));
    all.addAll(named.values());
    if (assign != null && assign.contains(".safetensors:")) {
      all.add(RunInput.Source.parse("--assign", assign).file());
    }
    return all;
  }

  private void report(
      MoeCheckpoint checkpoint,
      RunInput.Source source,
      AdapterFiles files,
      int[] assignment,
      List<Done> done,
      Path target) {
    int[] uses = new int[files.names().size() + 1];
    for (int a : assignment) {
      uses[a]++;
    }
    if (json) {
      moe.terminal().json(json(checkpoint, source, files, uses, done, target));
      return;
    }
    PrintWriter out = moe.terminal().out();
    out.println(done.getFirst().result().selection().explain());
    out.println();
    out.println(
        checkpoint.modelType()
            + ", "
            + assignment.length
            + " tokens from "
            + Text.line(source.toString())
            + " (base "
            + uses[0]
            + adapterUses(files, uses)
            + ")");
    TextTable table = new TextTable(">layer", "backend", ">prepared in", ">forward", ">tokens/s");
    for (Done d : done) {
      LayerRun.Result r = d.result();
      table.row(
          d.layer(),
          r.selection().chosenBackend().name(),
          Text.nanos(r.prepareNanos()),
          Text.nanos(r.forwardNanos()),
          String.format(ROOT, "%.0f", assignment.length * 1e9 / r.forwardNanos()));
    }
    out.print(table.render("  "));
    out.println(
        "Written: "
            + Text.line(target.toString())
            + " ("
            + Text.bytes(OutputFile.size(target))
            + ")");
  }

  private static String adapterUses(AdapterFiles files, int[] uses) {
    StringBuilder s = new StringBuilder();
    for (int i = 0; i < files.names().size(); i++) {
      s.append(", ").append(files.names().get(i)).append(' ').append(uses[i + 1]);
    }
    return s.toString();
  }

  private ObjectNode json(
      MoeCheckpoint checkpoint,
      RunInput.Source source,
      AdapterFiles files,
      int[] uses,
      List<Done> done,
      Path target) {
    ObjectNode root = Json.document("run");
    root.put("model", checkpoint.directory().toString());
    root.put("model_type", checkpoint.modelType());
    root.put("input", source.toString());
    int tokens = java.util.Arrays.stream(uses).sum();
    root.put("tokens", tokens);
    root.put("base_tokens", uses[0]);
    ArrayNode adapterNodes = root.putArray("adapters");
    for (int i = 0; i < files.reports().size(); i++) {
      AdapterReport r = files.reports().get(i);
      ObjectNode a = adapterNodes.addObject();
      a.put("name", r.name());
      a.put("directory", r.directory().toString());
      a.put("tokens", uses[i + 1]);
      a.put("max_rank", files.adapters().get(i).maxRank());
      r.counts().forEach((d, n) -> a.put("tensors_" + d.name().toLowerCase(ROOT), n));
    }
    ArrayNode layerNodes = root.putArray("layers");
    for (Done d : done) {
      LayerRun.Result r = d.result();
      ObjectNode l = layerNodes.addObject();
      l.put("layer", d.layer());
      l.put("backend", r.selection().chosenBackend().name());
      l.set("facts", SelectionJson.facts(r.selection().facts()));
      l.put("prepare_ns", r.prepareNanos());
      l.put("forward_ns", r.forwardNanos());
      l.put("tokens_per_second", tokens * 1e9 / Math.max(1, r.forwardNanos()));
    }
    root.set("selection", SelectionJson.of(done.getFirst().result().selection()));
    root.put("output", target.toString());
    return root;
  }
}
