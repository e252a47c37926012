package io.moe4j.cli;

import static java.util.Locale.ROOT;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.AdapterPolicy;
import io.moe4j.checkpoint.MoeCheckpoint;
import io.moe4j.checkpoint.SafetensorsFile;
import io.moe4j.cli.json.Json;
import io.moe4j.oracle.MoeOracle;
import java.io.PrintWriter;
import java.lang.foreign.Arena;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * {@code moe run} without options: the bundled sample, every adapter of a model mixed in one batch,
 * compared with what transformers and PEFT computed.
 */
final class SampleRun {
  /** The recorded results are f32; f32 arithmetic in another order stays far below this. */
  private static final double TOLERANCE = 1e-5;

  /** With hidden states in 16 bits, as GPUs take them; transformers itself is off by 7e-3 then. */
  private static final double TOLERANCE_16 = 1e-2;

  private static final double WARM_SECONDS = 1;

  /** Before anything is timed: Java compiles the kernels while they run. */
  private static final double WARM_UP_SECONDS = 2;

  private final Moe moe;
  private final OracleOptions oracleOptions;
  private final boolean json;

  SampleRun(Moe moe, OracleOptions oracleOptions, boolean json) {
    this.moe = moe;
    this.oracleOptions = oracleOptions;
    this.json = json;
  }

  /**
   * One layer against what was recorded.
   *
   * @param layer layer index
   * @param tokens {@code T}
   * @param hidden dtype of the hidden states
   * @param relativeError L2 norm of the difference over that of the recorded output
   * @param sameExperts whether every token chose the recorded experts
   * @param result timings, who computed
   */
  private record Check(
      int layer,
      int tokens,
      DType hidden,
      double relativeError,
      boolean sameExperts,
      LayerRun.Result result) {
    double tolerance() {
      return SampleRun.tolerance(hidden);
    }

    boolean passed() {
      return relativeError <= tolerance() && sameExperts;
    }
  }

  int run() {
    List<Check> checks = new ArrayList<>();
    ObjectNode root = Json.document("run.sample");
    ArrayNode models = root.putArray("models");
    try (Sample sample = Sample.extract();
        MoeOracle oracle = oracleOptions.discover()) {
      for (Sample.Model m : Sample.MODELS) {
        List<String> remarks = new ArrayList<>();
        List<Check> of = run(sample, m, oracle, remarks);
        checks.addAll(of);
        if (json) {
          models.add(json(m, of));
        } else {
          print(m, of, remarks, checks.size() == of.size());
        }
      }
    }
    long failed = checks.stream().filter(c -> !c.passed()).count();
    if (json) {
      root.put("passed", failed == 0);
      moe.terminal().json(root);
    } else {
      moe.terminal()
          .out()
          .println(
              failed == 0
                  ? "All "
                      + checks.size()
                      + " layers agree with what transformers and PEFT computed."
                  : failed
                      + " of "
                      + checks.size()
                      + " layers DIFFER from what transformers and PEFT computed (accepted: relative"
                      + " L2 error up to "
                      + checks.getFirst().tolerance()
                      + ", the same experts).");
    }
    return failed == 0 ? ExitCode.OK : ExitCode.CHECK_FAILED;
  }

  private List<Check> run(Sample sample, Sample.Model m, MoeOracle oracle, List<String> remarks) {
    Map<String, Path> directories = new LinkedHashMap<>();
    m.adapters().forEach(a -> directories.put(a, sample.adapter(m, a)));
    List<Check> checks = new ArrayList<>();
    try (MoeCheckpoint checkpoint = MoeCheckpoint.open(sample.model(m));
        SafetensorsFile recorded = SafetensorsFile.open(sample.recorded(m));
        AdapterFiles files =
            AdapterFiles.load(
                moe, directories, checkpoint.adapterTarget(), AdapterPolicy.DEFAULT)) {
      remarks.addAll(files.remarks());
      int[] assignment = recorded.tensor(m.recorded() + ".assignment").toInts();
      for (int layer : checkpoint.layers()) {
        Tensor hidden = recorded.tensor("layers." + layer + ".input");
        LayerRun runner =
            new LayerRun(
                oracle,
                checkpoint,
                files.adapters(),
                oracleOptions.backend,
                Activations.UNQUANTISED,
                hidden.dtype(),
                assignment.length);
        if (runner.inputDtype() != hidden.dtype() && checks.isEmpty()) {
          remarks.add(runner.rounding(hidden.dtype()));
        }
        try (Arena arena = Arena.ofShared()) {
          if (m.equals(Sample.MODELS.getFirst()) && checks.isEmpty()) {
            runner.run(layer, hidden, null, assignment, arena, WARM_UP_SECONDS);
          }
          LayerRun.Result r = runner.run(layer, hidden, null, assignment, arena, WARM_SECONDS);
          checks.add(
              new Check(
                  layer,
                  assignment.length,
                  runner.inputDtype(),
                  relativeError(
                      r.output(), recorded.tensor("layers." + layer + ".output." + m.recorded())),
                  sameRows(r.topkIds(), recorded.tensor("layers." + layer + ".topk_ids")),
                  r.withoutTensors()));
        }
      }
    }
    return checks;
  }

  /** {@return what a layer may differ from the recorded results by, as hidden states have it} */
  static double tolerance(DType hidden) {
    return hidden == DType.F32 ? TOLERANCE : TOLERANCE_16;
  }

  static double relativeError(Tensor got, Tensor expected) {
    double[] a = got.toDoubles();
    double[] b = expected.toDoubles();
    double difference = 0;
    double norm = 0;
    for (int i = 0; i < b.length; i++) {
      difference += (a[i] - b[i]) * (a[i] - b[i]);
      norm += b[i] * b[i];
    }
    return Math.sqrt(difference / norm);
  }

  /** As sets: transformers leaves the order of the chosen experts open. */
  static boolean sameRows(Tensor got, Tensor expected) {
    int[] a = got.toInts();
    int[] b = expected.toInts();
    int k = Math.toIntExact(expected.size(1));
    for (int row = 0; row < b.length; row += k) {
      int[] x = Arrays.copyOfRange(a, row, row + k);
      int[] y = Arrays.copyOfRange(b, row, row + k);
      Arrays.sort(x);
      Arrays.sort(y);
      if (!Arrays.equals(x, y)) {
        return false;
      }
    }
    return true;
  }

  private void print(Sample.Model m, List<Check> checks, List<String> remarks, boolean first) {
    PrintWriter out = moe.terminal().out();
    if (first) {
      out.println(
          "Sample: small models saved by Hugging Face transformers, adapters written by PEFT.");
      out.println();
    }
    out.println(m.name() + ": " + m.about());
    for (String line : checks.getFirst().result().selection().explain().split("\n", -1)) {
      out.println(("  " + line).stripTrailing());
    }
    remarks.forEach(r -> out.println("  " + r));
    out.println();
    TextTable table =
        new TextTable(
            ">layer",
            ">tokens",
            ">adapters",
            ">relative error",
            "experts",
            ">forward",
            ">tokens/s",
            "");
    for (Check c : checks) {
      table.row(
          c.layer(),
          c.tokens(),
          m.adapters().size() + " + base",
          String.format(ROOT, "%.1e", c.relativeError()),
          c.sameExperts() ? "identical" : "DIFFER",
          Text.nanos(c.result().warmNanos()),
          String.format(ROOT, "%.0f", tokensPerSecond(c)),
          c.passed() ? "ok" : "FAILED");
    }
    out.println(table.render("  "));
  }

  private static double tokensPerSecond(Check c) {
    return c.tokens() * 1e9 / Math.max(1, c.result().warmNanos());
  }

  private static ObjectNode json(Sample.Model m, List<Check> checks) {
    ObjectNode node = Json.object();
    node.put("model_type", m.name());
    ArrayNode adapters = node.putArray("adapters");
    m.adapters().forEach(adapters::add);
    ArrayNode layers = node.putArray("layers");
    for (Check c : checks) {
      ObjectNode l = layers.addObject();
      l.put("layer", c.layer());
      l.put("tokens", c.tokens());
      l.put("backend", c.result().selection().chosenBackend().name());
      l.put("relative_error", c.relativeError());
      l.put("same_experts", c.sameExperts());
      l.put("passed", c.passed());
      l.put("forward_ns", c.result().warmNanos());
      l.put("tokens_per_second", tokensPerSecond(c));
    }
    node.set("selection", SelectionJson.of(checks.getFirst().result().selection()));
    return node;
  }
}
