package io.moe4j.cli;

import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.tensor.DType;
import io.moe4j.cli.bench.BenchReport;
import io.moe4j.cli.bench.BenchShape;
import io.moe4j.cli.bench.BenchWeights;
import io.moe4j.cli.bench.DeviceBench;
import io.moe4j.cli.bench.DeviceBenchReport;
import io.moe4j.cli.bench.Draws;
import io.moe4j.cli.bench.LayerBench;
import io.moe4j.cli.bench.Peer;
import io.moe4j.cli.bench.RanksBench;
import io.moe4j.cli.bench.RanksLayout;
import io.moe4j.cli.bench.RanksReport;
import io.moe4j.cli.json.Json;
import io.moe4j.oracle.MoeOracle;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import java.util.concurrent.Callable;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParentCommand;

/** {@code moe bench}. */
@Command(
    name = "bench",
    description = {
      "Measure layers of random weights against what this machine could do at best.",
      "",
      "Prints Markdown. With --out DIR also writes bench.md, bench.json, bench.svg and bench.html"
          + " there. Without options the whole grid is measured, which takes some minutes.",
      "",
      "With --device cuda: forwards of a GPU backend in bf16, routing included, replayed from a"
          + " graph with inputs and routings that rotate, against the bytes and operations that"
          + " no kernel can do without. Writes bench.md and bench.json."
    })
final class BenchCommand implements Callable<Integer> {
  private static final List<Integer> RANK_TOKENS = List.of(16, 64, 256, 1024, 4096, 8192);
  private static final List<Integer> TOKENS = List.of(1, 4, 16, 64, 256, 1024);
  private static final List<Integer> MANY_TOKENS = List.of(4096, 8192);
  private static final List<String> FILES =
      List.of("bench.md", "bench.json", "bench.svg", "bench.html");
  private static final int ADAPTERS = 8;
  private static final int RANK = 16;

  @ParentCommand private Moe moe;

  @Option(
      names = "--shape",
      paramLabel = "NAME",
      completionCandidates = Candidates.Shapes.class,
      split = ",",
      description =
          "olmoe, qwen3-30b-a3b, mixtral-small, tiny, gpt-oss-120b-like, mixtral-8x7b, or sizes as"
              + " ExKxHxI, like 64x8x2048x1024.")
  private List<String> shapes = new ArrayList<>();

  @Option(
      names = "--dtype",
      paramLabel = "DTYPE",
      completionCandidates = Candidates.BenchDtypes.class,
      split = ",",
      description =
          "Weights: bf16, f16, f32, int4, int8 (both with groups of 128), int4-g32, int4-zero (with"
              + " zero points), fp8 (blocks of 128x128), mxfp4, nvfp4, fp8-tensor (activations too;"
              + " on a GPU only); on a GPU one of them, not f16 or f32.")
  private List<String> dtypes = new ArrayList<>();

  @Option(
      names = "--tokens",
      paramLabel = "T",
      split = ",",
      description =
          "Tokens in one forward. Default: 1,4,16,64,256,1024, and on a GPU 4096 and 8192 as well.")
  private List<Integer> tokens = new ArrayList<>();

  @Option(
      names = "--adapters",
      paramLabel = "N",
      description =
          "Adapters mixed round-robin over the tokens; 0 = no LoRA. Default: 8; on a GPU 1, 8 and"
              + " 32, each.")
  private @Nullable Integer adapters;

  @Option(
      names = "--rank",
      paramLabel = "R",
      description = "Their rank. Default: 16; on a GPU 16 and 64, each.")
  private @Nullable Integer rank;

  @Option(
      names = "--device",
      paramLabel = "TYPE",
      completionCandidates = Candidates.Devices.class,
      description = "cpu or cuda. Default: ${DEFAULT-VALUE}.",
      defaultValue = "cpu")
  private String device;

  @Option(
      names = "--rest",
      paramLabel = "MS",
      description =
          "On a GPU: let the card rest this long before each case, at most 10000; 0 keeps it at"
              + " full load, where its power limit slows large forwards. Default: ${DEFAULT-VALUE}.",
      defaultValue = "300")
  private int rest;

  @Mixin private LayoutOptions layoutOptions = new LayoutOptions();

  @Option(
      names = "--beside",
      paramLabel = "BACKEND:DTYPE",
      description =
          "With --device cuda: measure the same layers with this backend and these weights, too,"
              + " like triton:bf16, and print ours over theirs.")
  private @Nullable String besideOption;

  @Mixin private DrawOptions drawOptions = new DrawOptions();

  @Option(
      names = "--profile",
      description =
          "With --device cuda: time nothing, but run one forward of each case between"
              + " cuProfilerStart and cuProfilerStop, for ncu --profile-from-start off.")
  private boolean profile;

  @Option(names = "--quick", description = "Fewer cases and shorter: about half a minute.")
  private boolean quick;

  @Option(names = "--out", paramLabel = "DIR", description = "Write the report's files here.")
  private @Nullable Path out;

  @Option(
      names = "--peers",
      paramLabel = "FILE",
      description =
          "Times that others took, drawn beside ours: a JSON array of {\"name\", \"shape\", \"dtype\","
              + " \"tokens\", \"ms\"}, shape and dtype as the options above have them. Not with"
              + " --device cuda.")
  private @Nullable Path peersFile;

  @Option(
      names = "--explain",
      description =
          "Also print, for each layer, which backend was chosen and why, and what it decided:"
              + " kernels, where weights are, bytes. Not with --json, which has the latter, nor with"
              + " --device cuda.")
  private boolean explain;

  @Mixin private OracleOptions oracleOptions = new OracleOptions();

  @Option(names = "--json", description = "Print JSON instead of Markdown.")
  private boolean json;

  @SuppressWarnings("NullAway.Init") // picocli sets them
  BenchCommand() {}

  /** A shape in a dtype: one line of the table. */
  private record Line(BenchShape shape, BenchWeights dtype) {}

  @Override
  public Integer call() {
    requireRanges();
    if (explain && (json || device.equals("cuda"))) {
      throw CliException.usage("--explain does not go with " + (json ? "--json" : "--device cuda"));
    }
    if (device.equals("cuda")) {
      if (peersFile != null) {
        throw CliException.usage("--peers is " + peersFile + "; --device cuda draws no chart");
      }
      RanksLayout layout = layoutOptions.layout();
      return layout == null ? onDevice() : onDevices(layout);
    }
    layoutOptions.requireNone();
    if (drawOptions.given()) {
      throw CliException.usage("--batches, --touched and --draw go with --device cuda");
    }
    if (besideOption != null) {
      throw CliException.usage("--beside is " + besideOption + "; it goes with --device cuda");
    }
    if (profile) {
      throw CliException.usage("--profile goes with --device cuda");
    }
    if (!device.equals("cpu")) {
      throw CliException.usage("--device is \"" + device + "\"; accepted are cpu and cuda");
    }
    List<Peer> peers = peers();
    LayerBench.Plan plan = plan();
    List<Line> lines = lines();
    if (out != null) {
      createDirectory(out);
    }
    BenchReport report;
    try (MoeOracle oracle = oracleOptions.discover();
        LayerBench bench = new LayerBench(oracle, plan);
        Progress progress =
            Progress.start(moe, "Bench", (long) lines.size() * plan.tokens().size())) {
      int measured = 0;
      for (Line line : lines) {
        long needed = bench.memoryBytes(line.shape(), line.dtype());
        long free = Machine.availableMemoryBytes();
        if (free > 0 && needed > free) {
          moe.note(
              line.shape().name()
                  + " "
                  + line.dtype().text()
                  + " is left out: it takes "
                  + Text.bytes(needed)
                  + ", and "
                  + Text.bytes(free)
                  + " are available.");
          continue;
        }
        measured++;
        int[] begun = {0};
        bench.run(
            line.shape(),
            line.dtype(),
            what -> {
              if (begun[0]++ > 0) {
                progress.step();
              }
              progress.doing(what);
            });
        progress.step();
      }
      if (measured == 0) {
        throw new CliException(ExitCode.DEVICE, "Nothing fits the memory; try --shape tiny.");
      }
      report =
          bench.report(
              Instant.now().truncatedTo(ChronoUnit.SECONDS).toString(), machine(oracle), peers);
    }
    write(report);
    return ExitCode.OK;
  }

  private List<Peer> peers() {
    Path file = peersFile;
    if (file == null) {
      return List.of();
    }
    RunInput.requireFile("--peers", file);
    try {
      return Peer.read(file);
    } catch (IOException e) {
      throw CliException.usage("--peers " + file + " cannot be read: " + e);
    } catch (IllegalArgumentException e) {
      throw CliException.usage("--peers " + e.getMessage());
    }
  }

  private int onDevices(RanksLayout layout) {
    if (drawOptions.given()) {
      throw CliException.usage("--batches, --touched and --draw do not go with --ranks");
    }
    if (besideOption != null) {
      throw CliException.usage("--beside is " + besideOption + "; it does not go with --ranks");
    }
    if (profile) {
      throw CliException.usage("--profile does not go with --ranks");
    }
    if (!dtypes.isEmpty() && deviceWeights("--dtype", dtypes) != BenchWeights.BF16) {
      throw CliException.usage("--dtype is " + dtypes + "; with --ranks accepted is bf16");
    }
    List<BenchShape> of =
        shapes.isEmpty() ? BenchShape.DEVICE : shapes.stream().map(BenchCommand::shape).toList();
    of.forEach(shape -> LayoutOptions.requireShared(layout, shape));
    List<Integer> counts = counts();
    if (tokens.isEmpty() && layout.replicated() && !quick) {
      counts = Stream.concat(counts.stream(), MANY_TOKENS.stream()).toList();
    } else if (tokens.isEmpty()) {
      counts = quick ? List.of(16, 1024) : RANK_TOKENS;
    }
    LayoutOptions.requireShared(layout, counts);
    List<DeviceBench.Lora> grid = new ArrayList<>(List.of(DeviceBench.Lora.NONE));
    if (adapters == null || adapters > 0) {
      grid.add(
          new DeviceBench.Lora(rank == null ? RANK : rank, adapters == null ? ADAPTERS : adapters));
    }
    try (MoeOracle oracle = oracleOptions.discover();
        Progress progress =
            Progress.start(moe, "Bench", 2L * of.size() * counts.size() * grid.size())) {
      RanksBench bench =
          new RanksBench(
              new RanksBench.Plan(oracle, oracleOptions.backend, layout, counts, grid, rest));
      for (BenchShape s : of) {
        bench.run(
            s,
            what -> {
              progress.doing(what);
              progress.step();
            });
      }
      RanksReport report = bench.report();
      moe.terminal().print(json ? report.json() : null, report::markdown);
      if (out != null) {
        createDirectory(out);
        writeFile("bench.md", report.markdown());
        writeFile("bench.json", Json.text(report.json()) + "\n");
        moe.note("Written: bench.md and bench.json in " + out);
      }
    }
    return ExitCode.OK;
  }

  private int onDevice() {
    List<BenchShape> of =
        shapes.isEmpty() ? BenchShape.DEVICE : shapes.stream().map(BenchCommand::shape).toList();
    BenchWeights weights = dtypes.isEmpty() ? BenchWeights.BF16 : deviceWeights("--dtype", dtypes);
    Draws draws = drawOptions.draws(tokens);
    Beside beside = beside();
    if (profile && beside != null) {
      throw CliException.usage(
          "--profile does not go with --beside, whose launches would lie between ours");
    }
    List<Integer> counts = counts();
    if (tokens.isEmpty() && !quick) {
      counts = Stream.concat(counts.stream(), MANY_TOKENS.stream()).toList();
    }
    List<DeviceBench.Lora> grid = new ArrayList<>(List.of(DeviceBench.Lora.NONE));
    for (int r : rank != null ? List.of(rank) : quick ? List.of(RANK) : List.of(RANK, 64)) {
      for (int n :
          adapters != null
              ? List.of(adapters)
              : quick ? List.of(ADAPTERS) : List.of(1, ADAPTERS, 32)) {
        if (n > 0) {
          grid.add(new DeviceBench.Lora(r, n));
        }
      }
    }
    if (out != null) {
      createDirectory(out);
    }
    DeviceBenchReport report;
    try (MoeOracle oracle = oracleOptions.discover();
        DeviceBench bench =
            DeviceBench.open(oracle, oracleOptions.backend, weights, counts, grid, rest, draws);
        DeviceBench others =
            beside == null
                ? null
                : DeviceBench.open(
                    oracle, beside.backend(), beside.weights(), counts, grid, rest, draws);
        Progress progress =
            Progress.start(
                moe,
                "Bench",
                (others == null ? 1L : 2L) * of.size() * counts.size() * grid.size())) {
      if (profile) {
        bench.profile();
      }
      for (BenchShape s : of) {
        DeviceBench.Listener listener =
            what -> {
              progress.doing(what);
              progress.step();
            };
        bench.run(s, listener);
        if (beside != null && others != null) {
          others.run(s, what -> listener.begins(beside.text() + " " + what));
        }
      }
      report = bench.report();
      if (beside != null && others != null) {
        report = report.beside(beside.text(), others.report().rows());
      }
    }
    moe.terminal().print(json ? report.json() : null, report::markdown);
    if (out != null) {
      writeFile("bench.md", report.markdown());
      writeFile("bench.json", Json.text(report.json()) + "\n");
      moe.note("Written: bench.md and bench.json in " + out);
    }
    return ExitCode.OK;
  }

  /**
   * What else is measured.
   *
   * @param backend by name
   * @param weights of the same layers
   */
  private record Beside(String backend, BenchWeights weights) {
    String text() {
      return backend + " " + weights.text();
    }
  }

  private @Nullable Beside beside() {
    String text = besideOption;
    if (text == null) {
      return null;
    }
    int colon = text.indexOf(':');
    if (colon <= 0) {
      throw CliException.usage(
          "--beside is \"" + text + "\", must be a backend and its weights, like triton:bf16");
    }
    return new Beside(
        text.substring(0, colon), deviceWeights("--beside", List.of(text.substring(colon + 1))));
  }

  private static BenchWeights deviceWeights(String option, List<String> given) {
    List<BenchWeights> kinds = given.stream().map(BenchCommand::weights).toList();
    if (kinds.size() != 1 || kinds.getFirst().dtype() != DType.BF16) {
      throw CliException.usage(
          option
              + " is "
              + given
              + "; with --device cuda accepted is one of "
              + BenchWeights.texts().stream()
                  .filter(t -> weights(t).dtype() == DType.BF16)
                  .collect(Collectors.joining(", ")));
    }
    return kinds.getFirst();
  }

  private void writeFile(String name, String text) {
    Path directory = Objects.requireNonNull(out);
    try {
      Files.writeString(OutputTarget.resolve("--out", directory.resolve(name)), text);
    } catch (IOException e) {
      throw new CliException(
          ExitCode.OUTPUT, "The report could not be written to " + directory + ": " + e, e);
    }
  }

  private void requireRanges() {
    for (int t : tokens) {
      if (t < 1 || t > 1 << 20) {
        throw CliException.usage("--tokens is " + t + ", must be 1.." + (1 << 20));
      }
    }
    if (rest < 0 || rest > 10_000) {
      throw CliException.usage("--rest is " + rest + ", must be 0..10000 milliseconds");
    }
    int n = adapters != null ? adapters : ADAPTERS;
    int r = rank != null ? rank : RANK;
    if (n < 0 || n > 1024 || r < 1 || r > 4096) {
      throw CliException.usage(
          "--adapters is "
              + n
              + " and --rank "
              + r
              + "; accepted are 0..1024 adapters of rank 1..4096");
    }
  }

  private List<Integer> counts() {
    return !tokens.isEmpty()
        ? tokens.stream().distinct().sorted().toList()
        : quick ? List.of(1, 16, 256) : TOKENS;
  }

  private LayerBench.Plan plan() {
    int n = adapters != null ? adapters : ADAPTERS;
    int r = rank != null ? rank : RANK;
    return new LayerBench.Plan(
        counts(), n, r, oracleOptions.threads(), oracleOptions.backend, quick);
  }

  static BenchShape shape(String text) {
    try {
      return BenchShape.parse(text)
          .orElseThrow(() ->
              CliException.usage(
                  "--shape is \""
                      + text
                      + "\"; known are "
                      + BenchShape.named().stream()
                          .map(BenchShape::name)
                          .collect(Collectors.joining(", "))
                      + ", and sizes as ExKxHxI, like 64x8x2048x1024"));
    } catch (IllegalArgumentException e) {
      throw CliException.usage("--shape is \"" + text + "\": " + e.getMessage());
    }
  }

  private List<Line> lines() {
    List<BenchShape> of = new ArrayList<>();
    for (String s : shapes) {
      of.add(shape(s));
    }
    List<BenchWeights> types = dtypes.stream().map(BenchCommand::weights).toList();
    List<Line> lines = new ArrayList<>();
    if (of.isEmpty() && types.isEmpty()) {
      for (BenchShape s : BenchShape.KNOWN) {
        boolean wanted = !s.name().equals("tiny") && !(quick && s.name().startsWith("qwen3"));
        if (wanted) {
          lines.add(new Line(s, BenchWeights.BF16));
        }
        if (wanted && !quick && !s.name().startsWith("qwen3")) {
          lines.add(new Line(s, BenchWeights.F32));
        }
      }
      return lines;
    }
    for (BenchShape s : of.isEmpty() ? BenchShape.KNOWN.subList(0, 3) : of) {
      for (BenchWeights t : types.isEmpty() ? List.of(BenchWeights.BF16) : types) {
        if (t.quantizedActivations()) {
          throw CliException.usage(
              "--dtype is " + t.text() + ", whose activations are quantised: --device cuda only");
        }
        lines.add(new Line(s, t));
      }
    }
    return lines;
  }

  private static BenchWeights weights(String text) {
    return BenchWeights.of(text)
        .orElseThrow(() ->
            CliException.usage(
                "--dtype is \""
                    + text
                    + "\"; accepted are "
                    + String.join(", ", BenchWeights.texts())));
  }

  private static List<BenchReport.Fact> machine(MoeOracle oracle) {
    return List.of(
        new BenchReport.Fact("processor", "Processor", Machine.processor()),
        new BenchReport.Fact("processors", "Processors", Integer.toString(Machine.processors())),
        new BenchReport.Fact("vectors", "Vectors", Machine.vectors()),
        new BenchReport.Fact("kernels", "Kernels", kernels(oracle)),
        new BenchReport.Fact("memory", "Memory", Text.bytes(Machine.memoryBytes())),
        new BenchReport.Fact("system", "System", Machine.system()),
        new BenchReport.Fact("java", "Java", Machine.java()),
        new BenchReport.Fact("moe4j", "moe4j", Version.current()));
  }

  /** Which kernels the host's own backend runs; another backend's is in its row. */
  private static String kernels(MoeOracle oracle) {
    return oracle
        .catalog()
        .detectPlatform()
        .device(DeviceType.CPU)
        .map(d -> d.properties().get("kernels"))
        .orElse("unknown");
  }

  private void write(BenchReport report) {
    moe.terminal()
        .print(
            json ? report.json() : null,
            () -> report.markdown() + (explain ? report.explanations() : ""));
    report.warning().ifPresent(w -> moe.note("Warning: " + w + "."));
    if (out == null) {
      return;
    }
    writeFile("bench.md", report.markdown());
    writeFile("bench.json", Json.text(report.json()) + "\n");
    writeFile("bench.svg", report.svg());
    writeFile("bench.html", report.html());
    moe.note("Written: bench.md, bench.json, bench.svg and bench.html in " + out);
  }

  /** Before anything is measured: the folder, and that its files can be written. */
  private static void createDirectory(Path directory) {
    try {
      Files.createDirectories(directory);
      for (String name : FILES) {
        OutputTarget.resolve("--out", directory.resolve(name));
      }
    } catch (IOException e) {
      throw new CliException(ExitCode.OUTPUT, "--out " + directory + " cannot be created: " + e, e);
    }
  }
}
