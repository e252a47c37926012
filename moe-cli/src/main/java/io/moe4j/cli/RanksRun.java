package io.moe4j.cli;

import static java.util.Locale.ROOT;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.api.comm.Communicator;
import io.moe4j.api.comm.RankInfo;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.platform.DeviceType;
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
import java.lang.foreign.MemorySegment;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.jspecify.annotations.Nullable;

/**
 * {@code moe run} in one of several processes: each brings a block of the tokens, all share each
 * layer, on the host. Every rank checks its own tokens; rank 0 reports and writes.
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
      String model, int layer, int tokens, double relativeError, boolean same, Selection how) {
    boolean passed() {
      return same && relativeError <= SampleRun.TOLERANCE;
    }
  }

  private Device host(MoeOracle oracle) {
    return oracle.catalog().deviceProviders().stream()
        .filter(p -> p.type().equals(DeviceType.CPU))
        .findFirst()
        .orElseThrow(() ->
            new CliException(
                ExitCode.UNSUPPORTED, "several ranks run on the host: add backend-cpu"))
        .provider()
        .open(0);
  }

  private int first(int tokens, int r) {
    return Math.toIntExact((long) tokens * r / me.worldSize());
  }

  /** The bundled sample, against what was recorded. */
  int sample() {
    try (Sample sample = Sample.extract();
        MoeOracle oracle = oracleOptions.discover();
        Device device = host(oracle)) {
      Map<String, String> agreement = new TreeMap<>();
      agreement.put("run", "sample");
      try (Communicator group = Rendezvous.join(me, oracle.catalog(), device, agreement)) {
        for (Sample.Model m : Sample.MODELS) {
          sample(sample, m, oracle, group, device);
        }
        return report(null);
      }
    }
  }

  private void sample(
      Sample sample, Sample.Model m, MoeOracle oracle, Communicator group, Device device) {
    Map<String, Path> directories = new LinkedHashMap<>();
    m.adapters().forEach(a -> directories.put(a, sample.adapter(m, a)));
    try (MoeCheckpoint checkpoint = MoeCheckpoint.open(sample.model(m));
        SafetensorsFile recorded = SafetensorsFile.open(sample.recorded(m));
        AdapterFiles files =
            AdapterFiles.load(
                moe, directories, checkpoint.adapterTarget(), AdapterPolicy.DEFAULT)) {
      int[] assignment = recorded.tensor(m.recorded() + ".assignment").toInts();
      int tokens = assignment.length;
      int from = first(tokens, me.rank());
      int count = first(tokens, me.rank() + 1) - from;
      for (int layer : checkpoint.layers()) {
        Tensor hidden = recorded.tensor("layers." + layer + ".input");
        RankLayers layers =
            new RankLayers(
                oracle, checkpoint, files, oracleOptions.backend, hidden.dtype(), tokens, rank);
        RankLayers.Result r =
            layers.together(
                layer,
                hidden.narrow(0, from, count),
                null,
                Arrays.copyOfRange(assignment, from, from + count),
                group,
                device);
        Tensor expected = recorded.tensor("layers." + layer + ".output." + m.recorded());
        Tensor ids = recorded.tensor("layers." + layer + ".topk_ids");
        check(
            m.name(),
            layer,
            tokens,
            r,
            expected.narrow(0, from, count),
            ids.narrow(0, from, count),
            group);
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
    int from = first(tokens, me.rank());
    int count = first(tokens, me.rank() + 1) - from;
    RankLayers layers =
        new RankLayers(
            oracle, checkpoint, files, oracleOptions.backend, hidden.dtype(), tokens, rank);
    Map<String, String> agreement = new TreeMap<>(Rendezvous.layers(layers.configs(rank)));
    agreement.put("run", "layers " + index + ", " + tokens + " tokens, adapters " + files.names());
    Map<String, SafetensorsWriter.Spec> specs = new LinkedHashMap<>();
    for (int n : index) {
      MoeConfig c = checkpoint.config(n);
      specs.put(name(n, "output"), new SafetensorsWriter.Spec(DType.F32, tokens, c.hiddenSize()));
      specs.put(name(n, "topk_ids"), new SafetensorsWriter.Spec(DType.I32, tokens, c.topK()));
      specs.put(name(n, "topk_weights"), new SafetensorsWriter.Spec(DType.F32, tokens, c.topK()));
    }
    try (Device device = host(oracle);
        Communicator group = Rendezvous.join(me, oracle.catalog(), device, agreement);
        OutputFile out = me.rank() == 0 ? OutputFile.create(target, specs) : null) {
      for (int n : index) {
        Tensor mine = hidden.narrow(0, from, count);
        Tensor ids = tokenIds == null ? null : tokenIds.narrow(0, from, count);
        int[] who = Arrays.copyOfRange(assignment, from, from + count);
        RankLayers.Result r = layers.together(n, mine, ids, who, group, device);
        RankLayers.Result truth = layers.alone(n, mine, ids, who, device);
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
  }

  private static String name(int layer, String what) {
    return "layers." + layer + "." + what;
  }

  /** Every rank's rows to rank 0's file. */
  private void put(
      @Nullable OutputFile out, String name, Tensor mine, int tokens, Communicator group) {
    long[] send = new long[me.worldSize()];
    send[0] = mine.size(0);
    long[] receive = new long[me.worldSize()];
    long[] shape = mine.shape();
    shape[0] = out == null ? 0 : tokens;
    if (out != null) {
      for (int r = 0; r < me.worldSize(); r++) {
        receive[r] = (long) first(tokens, r + 1) - first(tokens, r);
      }
    }
    long bytes = mine.dtype().byteSize(shape[0] * shape[1]);
    MemorySegment room = MemorySegment.ofArray(new byte[Math.toIntExact(bytes)]);
    Tensor all = Tensor.of(mine.dtype(), room, shape);
    group.allToAll(mine, send, all, receive, DeviceStream.HOST);
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
      Communicator group) {
    boolean none = r.output().size(0) == 0;
    double error = none ? 0 : SampleRun.relativeError(r.output(), expected);
    boolean same = none || SampleRun.sameRows(r.topkIds(), ids);
    Tensor mine = Tensor.ofFloats(new float[] {(float) error, same ? 1 : 0}, 1, 2);
    Tensor all = Tensor.ofFloats(new float[2 * me.worldSize()], me.worldSize(), 2);
    group.allGather(mine, all, DeviceStream.HOST);
    double worst = 0;
    boolean everywhere = true;
    for (int n = 0; n < me.worldSize(); n++) {
      double theirs = all.get(n, 0);
      worst = theirs <= worst ? worst : theirs; // NaN is worst of all
      everywhere &= all.get(n, 1) == 1;
    }
    checks.add(new Check(model, layer, tokens, worst, everywhere, r.selection()));
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
            + " ranks, each a block of the tokens; rank 0 is "
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
    root.put("source", me.source());
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
