package io.moe4j.cli;

import io.moe4j.api.tensor.DType;
import io.moe4j.cli.bench.BenchReport;
import io.moe4j.cli.bench.BenchShape;
import io.moe4j.cli.bench.LayerBench;
import io.moe4j.oracle.MoeOracle;
import java.io.IOException;
import java.io.PrintWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.stream.Collectors;
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
          + " there. Without options the whole grid is measured, which takes some minutes."
    })
final class BenchCommand implements Callable<Integer> {
  @ParentCommand private Moe moe;

  @Option(
      names = "--shape",
      paramLabel = "NAME",
      split = ",",
      description =
          "olmoe, qwen3-30b-a3b, mixtral-small, tiny, or sizes as ExKxHxI, like 64x8x2048x1024.")
  private List<String> shapes = new ArrayList<>();

  @Option(
      names = "--dtype",
      paramLabel = "DTYPE",
      split = ",",
      description = "Weights: bf16, f16 or f32.")
  private List<String> dtypes = new ArrayList<>();

  @Option(
      names = "--tokens",
      paramLabel = "T",
      split = ",",
      description = "Tokens in one forward. Default: 1,4,16,64,256,1024.")
  private List<Integer> tokens = new ArrayList<>();

  @Option(
      names = "--adapters",
      paramLabel = "N",
      description =
          "Adapters mixed round-robin over the tokens; 0 = no LoRA. Default: ${DEFAULT-VALUE}.",
      defaultValue = "8")
  private int adapters;

  @Option(
      names = "--rank",
      paramLabel = "R",
      description = "Their rank. Default: ${DEFAULT-VALUE}.",
      defaultValue = "16")
  private int rank;

  @Option(names = "--quick", description = "Fewer cases and shorter: about half a minute.")
  private boolean quick;

  @Option(names = "--out", paramLabel = "DIR", description = "Write the report's files here.")
  private @Nullable Path out;

  @Mixin private OracleOptions oracleOptions = new OracleOptions();

  @Option(names = "--json", description = "Print JSON instead of Markdown.")
  private boolean json;

  @SuppressWarnings("NullAway.Init") // picocli sets moe
  BenchCommand() {}

  /** A shape in a dtype: one line of the table. */
  private record Line(BenchShape shape, DType dtype) {}

  @Override
  public Integer call() {
    LayerBench.Plan plan = plan();
    List<Line> lines = lines();
    if (out != null) {
      createDirectory(out);
    }
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
                  + line.dtype()
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
      BenchReport report =
          bench.report(Instant.now().truncatedTo(ChronoUnit.SECONDS).toString(), machine());
      write(report);
      return ExitCode.OK;
    }
  }

  private LayerBench.Plan plan() {
    for (int t : tokens) {
      if (t < 1 || t > 1 << 20) {
        throw CliException.usage("--tokens is " + t + ", must be 1.." + (1 << 20));
      }
    }
    if (adapters < 0 || adapters > 1024 || rank < 1 || rank > 4096) {
      throw CliException.usage(
          "--adapters is "
              + adapters
              + " and --rank "
              + rank
              + "; accepted are 0..1024 adapters of rank 1..4096");
    }
    List<Integer> counts =
        !tokens.isEmpty()
            ? tokens.stream().distinct().sorted().toList()
            : quick ? List.of(1, 16, 256) : List.of(1, 4, 16, 64, 256, 1024);
    int threads = oracleOptions.threads();
    return new LayerBench.Plan(counts, adapters, rank, threads, oracleOptions.backend, quick);
  }

  private List<Line> lines() {
    List<BenchShape> of = new ArrayList<>();
    for (String s : shapes) {
      of.add(
          BenchShape.parse(s)
              .orElseThrow(() ->
                  CliException.usage(
                      "--shape is \""
                          + s
                          + "\"; known are "
                          + BenchShape.KNOWN.stream()
                              .map(BenchShape::name)
                              .collect(Collectors.joining(", "))
                          + ", and sizes as ExKxHxI, like 64x8x2048x1024")));
    }
    List<DType> types = dtypes.stream().map(BenchCommand::dtype).toList();
    List<Line> lines = new ArrayList<>();
    if (of.isEmpty() && types.isEmpty()) {
      for (BenchShape s : BenchShape.KNOWN) {
        boolean wanted = !s.name().equals("tiny") && !(quick && s.name().startsWith("qwen3"));
        if (wanted) {
          lines.add(new Line(s, DType.BF16));
        }
        if (wanted && !quick && !s.name().startsWith("qwen3")) {
          lines.add(new Line(s, DType.F32));
        }
      }
      return lines;
    }
    for (BenchShape s : of.isEmpty() ? BenchShape.KNOWN.subList(0, 3) : of) {
      for (DType t : types.isEmpty() ? List.of(DType.BF16) : types) {
        lines.add(new Line(s, t));
      }
    }
    return lines;
  }

  private static DType dtype(String text) {
    return switch (text.toLowerCase(java.util.Locale.ROOT)) {
      case "bf16" -> DType.BF16;
      case "f16" -> DType.F16;
      case "f32" -> DType.F32;
      default ->
          throw CliException.usage("--dtype is \"" + text + "\"; accepted are bf16, f16, f32");
    };
  }

  private static List<BenchReport.Fact> machine() {
    return List.of(
        new BenchReport.Fact("processor", "Processor", Machine.processor()),
        new BenchReport.Fact("processors", "Processors", Integer.toString(Machine.processors())),
        new BenchReport.Fact("vectors", "Vectors", Machine.vectors()),
        new BenchReport.Fact("memory", "Memory", Text.bytes(Machine.memoryBytes())),
        new BenchReport.Fact("system", "System", Machine.system()),
        new BenchReport.Fact("java", "Java", Machine.java()),
        new BenchReport.Fact("moe4j", "moe4j", Version.current()));
  }

  private void write(BenchReport report) {
    PrintWriter stdout = moe.terminal().out();
    stdout.println(json ? Json.text(report.json()) : report.markdown().stripTrailing());
    if (out == null) {
      return;
    }
    try {
      Files.writeString(out.resolve("bench.md"), report.markdown());
      Files.writeString(out.resolve("bench.json"), Json.text(report.json()) + "\n");
      Files.writeString(out.resolve("bench.svg"), report.svg());
      Files.writeString(out.resolve("bench.html"), report.html());
    } catch (IOException e) {
      throw new CliException(
          ExitCode.OUTPUT, "The report could not be written to " + out + ": " + e, e);
    }
    moe.note("Written: bench.md, bench.json, bench.svg and bench.html in " + out);
  }

  private static void createDirectory(Path directory) {
    try {
      Files.createDirectories(directory);
    } catch (IOException e) {
      throw new CliException(ExitCode.OUTPUT, "--out " + directory + " cannot be created: " + e, e);
    }
  }
}
