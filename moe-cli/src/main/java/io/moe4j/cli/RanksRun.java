package io.moe4j.cli;

import static java.util.Locale.ROOT;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.api.comm.Communicator;
import io.moe4j.api.comm.RankInfo;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.AdapterPolicy;
import io.moe4j.checkpoint.MoeCheckpoint;
import io.moe4j.checkpoint.SafetensorsFile;
import io.moe4j.checkpoint.SafetensorsWriter;
import io.moe4j.cli.json.Json;
import io.moe4j.oracle.MoeOracle;
import io.moe4j.oracle.Rendezvous;
import io.moe4j.oracle.Selection;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.TreeMap;
import org.jspecify.annotations.Nullable;

/**
 * {@code moe run} in one of several processes: each brings a block of the tokens, or all of them,
 * and all share each layer, on GPUs or on the host ({@link RankDevice}). Every rank checks its own
 * tokens; rank 0 reports and writes.
 */
final class RanksRun {
  private final Moe moe;
  private final OracleOptions oracleOptions;
  private final RankInfo me;
  private final ParallelConfig rank;
  private final boolean json;
  private final List<Check> checks = new ArrayList<>();

  RanksRun(Moe moe, OracleOptions oracleOptions, RankInfo me, ParallelConfig rank, boolean json) {
    this.moe = moe;
    this.oracleOptions = oracleOptions;
    this.me = me;
    this.rank = rank;
    this.json = json;
  }

  /** One layer, the worst of all ranks. */
  private record Check(
      String model,
      int layer,
      int tokens,
      double relativeError,
      boolean same,
      RankLayers.Result result) {
    boolean passed() {
      return same && relativeError <= SampleRun.tolerance(result.hidden());
    }

    Selection how() {
      return result.selection();
    }
  }

  /** A rank's tokens. */
  private record Block(int from, int count) {
    Tensor of(Tensor all) {
      return all.narrow(0, from, count);
    }

    int[] of(int[] all) {
      return Arrays.copyOfRange(all, from, from + count);
    }
  }

  private Block block(int tokens, int r) {
    if (rank.replicatedTokens()) {
      return new Block(0, tokens);
    }
    int from = first(tokens, r);
    return new Block(from, first(tokens, r + 1) - from);
  }

  private int first(int tokens, int r) {
    return Math.toIntExact((long) tokens * r / me.worldSize());
  }

  /** The bundled sample, against what was recorded. */
  int sample() {
    try (Sample sample = Sample.extract();
        MoeOracle oracle = oracleOptions.discover();
        Device device = sampleDevice(sample, oracle)) {
      return inGroup(
          oracle,
          device,
          Map.of("run", "sample" + options()),
          group -> {
            for (Sample.Model m : Sample.MODELS) {
              sample(sample, m, oracle, group);
            }
            return report(null);
          });
    }
  }

  /** What all ranks must have been given alike, as far as configs of layers do not tell. */
  private String options() {
    return (rank.tpSize() > 1 ? " --tp " + rank.tpSize() : "")
        + (rank.replicatedTokens() ? " --replicated" : "");
  }

  /** All models of the sample run where the first one does. */
  private Device sampleDevice(Sample sample, MoeOracle oracle) {
    Sample.Model m = Sample.MODELS.getFirst();
    try (MoeCheckpoint checkpoint = MoeCheckpoint.open(sample.model(m));
        SafetensorsFile recorded = SafetensorsFile.open(sample.recorded(m));
        AdapterFiles files = files(sample, m, checkpoint)) {
      int layer = checkpoint.layers().getFirst();
      DType given = recorded.tensor(name(layer, "input")).dtype();
      return open(oracle, layers(oracle, checkpoint, files, given, 1), layer);
    }
  }

  private AdapterFiles files(Sample sample, Sample.Model m, MoeCheckpoint checkpoint) {
    Map<String, Path> directories = new LinkedHashMap<>();
    m.adapters().forEach(a -> directories.put(a, sample.adapter(m, a)));
    return AdapterFiles.load(moe, directories, checkpoint.adapterTarget(), AdapterPolicy.DEFAULT);
  }

  private RankLayers layers(
      MoeOracle oracle, MoeCheckpoint checkpoint, AdapterFiles files, DType given, int tokens) {
    return new RankLayers(oracle, checkpoint, files, oracleOptions.backend, given, tokens, rank);
  }

  private Device open(MoeOracle oracle, RankLayers layers, int layer) {
    MoeConfig part = Objects.requireNonNull(layers.configs(rank).get(layer));
    return RankDevice.open(moe, oracle, part, oracleOptions.backend, me);
  }

  /** What ranks do once they have met; returns the exit code. */
  private interface Together {
    int run(RankGroup group);
  }

  /** Meets the others, who are told if this rank fails. */
  private int inGroup(
      MoeOracle oracle, Device device, Map<String, String> agreement, Together work) {
    Map<String, String> all = new TreeMap<>(agreement);
    all.put("device", device.info().id().type().toString());
    try (Communicator group = Rendezvous.join(me, oracle.catalog(), device, all)) {
      try {
        return work.run(new RankGroup(group, device));
      } catch (RuntimeException | Error e) {
        group.abort(e);
        throw e;
      }
    }
  }

  private void sample(Sample sample, Sample.Model m, MoeOracle oracle, RankGroup group) {
    try (MoeCheckpoint checkpoint = MoeCheckpoint.open(sample.model(m));
        SafetensorsFile recorded = SafetensorsFile.open(sample.recorded(m));
        AdapterFiles files = files(sample, m, checkpoint)) {
      int[] assignment = recorded.tensor(m.recorded() + ".assignment").toInts();
      int tokens = assignment.length;
      Block mine = block(tokens, me.rank());
      for (int layer : checkpoint.layers()) {
        Tensor hidden = recorded.tensor(name(layer, "input"));
        RankLayers layers = layers(oracle, checkpoint, files, hidden.dtype(), tokens);
        RankLayers.Result r =
            layers.together(layer, mine.of(hidden), null, mine.of(assignment), group);
        Tensor expected = recorded.tensor(name(layer, "output." + m.recorded()));
        Tensor ids = recorded.tensor(name(layer, "topk_ids"));
        check(m.name(), layer, tokens, r, mine.of(expected), mine.of(ids), group);
      }
    }
  }

  /**
   * Layers of a checkpoint, against one rank that has all of the layer.
   *
   * @param index layers to run
   * @param hidden of all ranks
   * @param tokenIds of all ranks, or null
   * @param assignment of all tokens
   * @param target where rank 0 writes
   */
  int model(
      MoeOracle oracle,
      MoeCheckpoint checkpoint,
      AdapterFiles files,
      List<Integer> index,
      Tensor hidden,
      @Nullable Tensor tokenIds,
      int[] assignment,
      Path target) {
    int tokens = assignment.length;
    Block mine = block(tokens, me.rank());
    RankLayers layers = layers(oracle, checkpoint, files, hidden.dtype(), tokens);
    Map<String, String> agreement = new TreeMap<>(Rendezvous.layers(layers.configs(rank)));
    agreement.put("run", "layers " + index + ", " + tokens + " tokens, adapters " + files.names());
    Map<String, SafetensorsWriter.Spec> specs = new LinkedHashMap<>();
    for (int n : index) {
      MoeConfig c = checkpoint.config(n);
      specs.put(name(n, "output"), new SafetensorsWriter.Spec(DType.F32, tokens, c.hiddenSize()));
      specs.put(name(n, "topk_ids"), new SafetensorsWriter.Spec(DType.I32, tokens, c.topK()));
      specs.put(name(n, "topk_weights"), new SafetensorsWriter.Spec(DType.F32, tokens, c.topK()));
    }
    try (Device device = open(oracle, layers, index.getFirst())) {
      return inGroup(
          oracle,
          device,
          agreement,
          group -> {
            try (OutputFile out = me.rank() == 0 ? OutputFile.create(target, specs) : null) {
              for (int n : index) {
                Tensor in = mine.of(hidden);
                Tensor ids = tokenIds == null ? null : mine.of(tokenIds);
                int[] who = mine.of(assignment);
                RankLayers.Result r = layers.together(n, in, ids, who, group);
                RankLayers.Result truth = layers.alone(n, in, ids, who, device);
                check(checkpoint.modelType(), n, tokens, r, truth.output(), truth.topkIds(), group);
                put(out, name(n, "output"), r.output(), tokens, group);
                put(out, name(n, "topk_ids"), r.topkIds(), tokens, group);
                put(out, name(n, "topk_weights"), r.topkWeights(), tokens, group);
              }
              if (out != null) {
                out.commit();
              }
              return report(target);
            }
          });
    }
  }

  private static String name(int layer, String what) {
    return "layers." + layer + "." + what;
  }

  /** Every rank's rows to rank 0's file; its own, where each has all. */
  private void put(
      @Nullable OutputFile out, String name, Tensor mine, int tokens, RankGroup group) {
    long[] rows = new long[me.worldSize()];
    for (int r = 0; r < rows.length; r++) {
      rows[r] = block(tokens, r).count();
    }
    Tensor all = rank.replicatedTokens() ? mine : group.onFirst(mine, rows);
    if (out != null) {
      out.put(name, all);
    }
  }

  /** All ranks know how the worst one did. */
  private void check(
      String model,
      int layer,
      int tokens,
      RankLayers.Result r,
      Tensor expected,
      Tensor ids,
      RankGroup group) {
    boolean none = r.output().size(0) == 0;
    double error = none ? 0 : SampleRun.relativeError(r.output(), expected);
    boolean same = none || SampleRun.sameRows(r.topkIds(), ids);
    Tensor all = group.all((float) error, same ? 1 : 0);
    double worst = 0;
    boolean everywhere = true;
    for (int n = 0; n < me.worldSize(); n++) {
      double theirs = all.get(n, 0);
      worst = theirs <= worst ? worst : theirs; // NaN is worst of all
      everywhere &= all.get(n, 1) == 1;
    }
    checks.add(new Check(model, layer, tokens, worst, everywhere, r));
  }

  private int report(@Nullable Path target) {
    boolean passed = checks.stream().allMatch(Check::passed);
    if (me.rank() == 0) {
      if (json) {
        moe.terminal().json(document(passed, target));
      } else {
        print(passed, target);
      }
    }
    return passed ? ExitCode.OK : ExitCode.CHECK_FAILED;
  }

  private void print(boolean passed, @Nullable Path target) {
    var out = moe.terminal().out();
    out.println(
        me.worldSize()
            + (rank.replicatedTokens()
                ? " ranks, each with all tokens; rank 0 is "
                : " ranks, each a block of the tokens; rank 0 is ")
            + rank
            + " ("
            + me.source()
            + ")");
    out.println(checks.getFirst().how().explain());
    out.println();
    TextTable table = new TextTable("model", ">layer", ">tokens", ">relative error", "experts", "");
    for (Check c : checks) {
      table.row(
          c.model(),
          c.layer(),
          c.tokens(),
          String.format(ROOT, "%.1e", c.relativeError()),
          c.same() ? "identical" : "DIFFER",
          c.passed() ? "ok" : "FAILED");
    }
    out.println(table.render("  "));
    String with = target == null ? "what transformers and PEFT computed" : "one rank";
    out.println(
        passed
            ? "All " + checks.size() + " layers agree with " + with + " on every rank."
            : "Layers DIFFER from " + with + ".");
    if (target != null) {
      out.println(
          "Written: "
              + Text.line(target.toString())
              + " ("
              + Text.bytes(OutputFile.size(target))
              + ")");
    }
  }

  private ObjectNode document(boolean passed, @Nullable Path target) {
    ObjectNode root = Json.document("run.ranks");
    root.put("ranks", me.worldSize());
    root.put("tensor_parallel", rank.tpSize());
    root.put("replicated_tokens", rank.replicatedTokens());
    root.put("source", me.source());
    root.put("exchange", checks.getFirst().how().exchange().replaceFirst("^exchange: ", ""));
    ArrayNode layers = root.putArray("layers");
    for (Check c : checks) {
      ObjectNode l = layers.addObject();
      l.put("model_type", c.model());
      l.put("layer", c.layer());
      l.put("tokens", c.tokens());
      l.put("relative_error", c.relativeError());
      l.put("same_experts", c.same());
      l.put("passed", c.passed());
    }
    root.set("selection", SelectionJson.of(checks.getFirst().how()));
    root.put("passed", passed);
    if (target != null) {
      root.put("output", target.toString());
    }
    return root;
  }
}
