package io.moe4j.cli;

import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.TunableBackend;
import io.moe4j.api.tensor.DType;
import io.moe4j.checkpoint.MoeCheckpoint;
import io.moe4j.cli.bench.BenchShape;
import io.moe4j.cli.bench.BenchWeights;
import io.moe4j.cli.bench.DeviceBench;
import io.moe4j.cli.bench.DeviceTuning;
import io.moe4j.oracle.Candidate;
import io.moe4j.oracle.FoundBackend;
import io.moe4j.oracle.MoeOracle;
import io.moe4j.oracle.Selection;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import java.util.concurrent.Callable;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.function.BooleanSupplier;
import java.util.stream.Collectors;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParentCommand;

/** {@code moe tune}. */
@Command(
    name = "tune",
    description = {
      "Measure on this machine's GPU which of the compiled kernel variants are fastest for a layer,"
          + " and keep the result in a file that every later layer on this card reads.",
      "",
      "For each number of tokens, without and with adapters, every variant that fits is run and"
          + " compared with the built-in choice: one that gives another result is dropped and"
          + " reported, the fastest is kept, the built-in one unless another is faster by a"
          + " hundredth. Each size is written when it is found, so that Ctrl-C and --limit lose at"
          + " most the last one; what the file holds for other sizes, layers and cards stays.",
      "",
      "Without a GPU: exit code 6. A model no GPU backend takes: exit code 5, with the reasons. A"
          + " file that cannot be written: exit code 7."
    })
final class TuneCommand implements Callable<Integer> {
  private static final List<Integer> TOKENS =
      List.of(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192);
  private static final int RANK = 16;
  private static final List<Integer> ADAPTERS = List.of(0, 8);
  private static final long SECONDS_TO_STOP = 20;

  @ParentCommand private Moe moe;

  @Option(
      names = "--model",
      paramLabel = "DIR",
      description = "Tune for a layer of this checkpoint, with its weights.")
  private @Nullable Path model;

  @Mixin private LayoutOption layout = new LayoutOption();

  @Option(
      names = "--layer",
      paramLabel = "N",
      completionCandidates = Candidates.OneLayer.class,
      description = "Which MoE layer. Default: the first.")
  private @Nullable Integer layer;

  @Option(
      names = "--shape",
      paramLabel = "NAME",
      completionCandidates = Candidates.Shapes.class,
      split = ",",
      description =
          "Or for random weights of these sizes: a name that moe bench knows, or ExKxHxI, like"
              + " 64x8x2048x1024. Default, without --model: qwen3-30b-a3b.")
  private List<String> shapes = new ArrayList<>();

  @Option(
      names = "--dtype",
      paramLabel = "DTYPE",
      completionCandidates = Candidates.TuneDtypes.class,
      split = ",",
      description =
          "Random weights, as moe bench takes them but f32; what the backend has no kernels for is"
              + " refused. Default: bf16.")
  private List<String> dtypes = new ArrayList<>();

  @Option(
      names = "--tokens",
      paramLabel = "T",
      split = ",",
      description = "Tokens in one forward. Default: 1,2,4,...,8192.")
  private List<Integer> tokens = new ArrayList<>();

  @Option(
      names = "--adapters",
      paramLabel = "N",
      split = ",",
      description = "Adapters mixed round-robin over the tokens; 0 = the base model. Default: 0,8.")
  private List<Integer> adapters = new ArrayList<>();

  @Option(
      names = "--rank",
      paramLabel = "R",
      split = ",",
      description = "Their ranks, each with each number of adapters. Default: 16.")
  private List<Integer> ranks = new ArrayList<>();

  @Option(
      names = "--output",
      paramLabel = "FILE",
      description =
          "Where to. Default: the backend's file that layers read, in the user's cache directory"
              + " (or what moe4j.triton.tiles, moe4j.marlin.plans, moe4j.flashinfer.tactics say).")
  private @Nullable Path output;

  @Option(
      names = "--limit",
      paramLabel = "SECONDS",
      description = "Stop after this time, with what was found by then. Default: no limit.")
  private @Nullable Integer limit;

  @Mixin private OracleOptions oracleOptions = new OracleOptions();

  @Option(names = "--json", description = "Print JSON.")
  private boolean json;

  private final List<DeviceTuning.Row> rows = new ArrayList<>();
  private final List<String> skipped = new ArrayList<>();

  /** Set when the process is asked to end. */
  private volatile boolean interrupted;

  @SuppressWarnings("NullAway.Init") // picocli sets moe
  TuneCommand() {}

  /** Who tunes, and where. */
  private record Chosen(FoundBackend found, TunableBackend backend, DeviceInfo device) {}

  @Override
  public Integer call() {
    requireRanges();
    CountDownLatch done = new CountDownLatch(1);
    try (MoeOracle oracle = oracleOptions.discover();
        OnInterrupt _ = OnInterrupt.run(() -> waitFor(done))) {
      if (model == null) {
        return tune(oracle, randomLayers());
      }
      RunInput.requireDirectory("--model", model);
      try (MoeCheckpoint checkpoint = layout.open(model)) {
        return tune(oracle, List.of(layerOf(checkpoint)));
      }
    } finally {
      done.countDown();
    }
  }

  /** The process ends from outside: the size that is being measured is given up, the rest told. */
  private void waitFor(CountDownLatch done) {
    interrupted = true;
    try {
      if (!done.await(SECONDS_TO_STOP, TimeUnit.SECONDS)) {
        moe.note("moe tune did not stop in time; what was found is in the file.");
      }
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
  }

  private int tune(MoeOracle oracle, List<DeviceTuning.Layer> layers) {
    Chosen chosen = choose(oracle, layers.getFirst().config());
    Path file = file(chosen.backend());
    List<Integer> counts = tokens.isEmpty() ? TOKENS : tokens.stream().distinct().sorted().toList();
    List<DeviceBench.Lora> grid = grid();
    requireAll(oracle, layers, grid, chosen.found().name());
    long sizes = (long) layers.size() * counts.size() * grid.size();
    long deadline = limit == null ? Long.MAX_VALUE : System.nanoTime() / 1_000_000 + limit * 1000L;
    BooleanSupplier goOn = () -> !interrupted && System.nanoTime() / 1_000_000 < deadline;
    boolean complete = true;
    DeviceId id = chosen.device().id();
    try (Device device = oracle.catalog().openDevice(chosen.found(), id);
        Progress progress = Progress.start(moe, "Tune", sizes)) {
      DeviceTuning tuning = new DeviceTuning(chosen.backend(), device, file);
      DeviceTuning.Listener listener = listener(progress);
      for (DeviceTuning.Layer l : layers) {
        complete = complete && tuning.run(l, counts, grid, goOn, listener);
      }
    } catch (UncheckedIOException e) {
      throw new CliException(
          ExitCode.OUTPUT, "The choices could not be written to " + file + ": " + e.getCause(), e);
    }
    TuneReport report =
        new TuneReport(
            chosen.device().name(), chosen.found().name(), file, sizes, complete, rows, skipped);
    moe.terminal().print(json ? report.json() : null, report::text);
    return ExitCode.OK;
  }

  private DeviceTuning.Listener listener(Progress progress) {
    return new DeviceTuning.Listener() {
      @Override
      public void doing(String what) {
        progress.doing(what);
      }

      @Override
      public void skipped(int sizes, String why) {
        skipped.add(why);
        for (int i = 0; i < sizes; i++) {
          progress.step();
        }
      }

      @Override
      public void found(DeviceTuning.Row row) {
        rows.add(row);
        progress.step();
      }
    };
  }

  private Chosen choose(MoeOracle oracle, MoeConfig config) {
    Platform platform = oracle.catalog().detectPlatform();
    List<FoundBackend> tunable =
        oracle.catalog().backends().stream()
            .filter(b -> b.backend() instanceof TunableBackend)
            .toList();
    String names = tunable.stream().map(FoundBackend::name).collect(Collectors.joining(", "));
    String wanted = oracleOptions.backend;
    if (wanted != null && tunable.stream().noneMatch(b -> b.name().equals(wanted))) {
      throw CliException.usage(
          "--backend is \""
              + wanted
              + "\", which has nothing to tune; what can be tuned: "
              + (names.isEmpty() ? "nothing here" : names));
    }
    if (tunable.isEmpty()) {
      throw new CliException(
          ExitCode.UNSUPPORTED,
          "No backend here has anything to tune; put backend-triton or backend-marlin on the class path.");
    }
    List<FoundBackend> here =
        tunable.stream().filter(b -> platform.device(b.deviceType()).isPresent()).toList();
    if (here.isEmpty()) {
      throw new CliException(
          ExitCode.DEVICE,
          "moe tune measures on a GPU, and this machine has none for "
              + names
              + ": "
              + platform.whyAbsent(tunable.getFirst().deviceType())
              + ". Run it on the machine that is to compute; without a file of tuned choices the"
              + " built-in table serves.");
    }
    Selection all = oracle.evaluate(config, platform);
    String best =
        wanted != null
            ? wanted
            : all.supported().stream()
                .map(Candidate::name)
                .filter(n -> here.stream().anyMatch(b -> b.name().equals(n)))
                .findFirst()
                .orElse(here.getFirst().name());
    FoundBackend found = require(oracle, config, best);
    return new Chosen(
        found, (TunableBackend) found.backend(), platform.device(found.deviceType()).orElseThrow());
  }

  /** {@return a backend by its name, if it takes a layer; refused with all reasons otherwise} */
  private static FoundBackend require(MoeOracle oracle, MoeConfig config, String name) {
    return oracle.evaluate(config, oracle.catalog().detectPlatform(), name).chosenBackend();
  }

  /**
   * Layers differ in what a backend takes, and so do adapters: known before anything is measured.
   */
  private static void requireAll(
      MoeOracle oracle, List<DeviceTuning.Layer> layers, List<DeviceBench.Lora> grid, String name) {
    for (DeviceTuning.Layer l : layers) {
      for (DeviceBench.Lora lora : grid) {
        MoeConfig.Builder b = l.config().toBuilder();
        if (lora.adapters() > 0) {
          b.lora(new LoraConfig(lora.adapters(), lora.rank()));
        }
        require(oracle, b.build(), name);
      }
    }
  }

  private Path file(TunableBackend backend) {
    Path file = output;
    if (file == null) {
      file =
          backend
              .tuningFile()
              .orElseThrow(() ->
                  CliException.usage(
                      "there is no place for tuned choices of "
                          + backend.name()
                          + " ("
                          + backend.tuningStatus(null).explanation()
                          + "); name a file with --output"));
    }
    Path parent = file.toAbsolutePath().getParent();
    try {
      if (parent != null) {
        Files.createDirectories(parent);
      }
    } catch (IOException e) {
      throw new CliException(ExitCode.OUTPUT, parent + " cannot be created: " + e, e);
    }
    return OutputTarget.resolve(output == null ? "the file of tuned choices" : "--output", file);
  }

  /** {@return what random experts can be stored as: what GPU backends have kernels for} */
  static List<String> dtypes() {
    return BenchWeights.texts().stream().filter(t -> !t.equals(BenchWeights.F32.text())).toList();
  }

  private List<DeviceTuning.Layer> randomLayers() {
    if (layer != null) {
      throw CliException.usage("--layer goes with --model DIR");
    }
    List<DeviceTuning.Layer> all = new ArrayList<>();
    for (String text : shapes.isEmpty() ? List.of(BenchShape.DEVICE.getFirst().name()) : shapes) {
      BenchShape s = BenchCommand.shape(text);
      for (String name : dtypes.isEmpty() ? List.of("bf16") : dtypes) {
        BenchWeights kind =
            BenchWeights.of(name)
                .filter(w -> dtypes().contains(w.text()))
                .orElseThrow(() ->
                    CliException.usage(
                        "--dtype is \""
                            + name
                            + "\"; accepted are "
                            + String.join(", ", dtypes())));
        DType dtype = kind.dtype();
        MoeConfig config =
            MoeConfig.builder(s.hiddenSize(), s.intermediateSize(), s.numExperts(), s.topK())
                .inputDtype(dtype)
                .weightDtype(dtype)
                .quantScheme(kind.scheme())
                .quantizedActivations(kind.quantizedActivations())
                .build();
        all.add(
            new DeviceTuning.Layer(
                s.name() + (kind == BenchWeights.BF16 ? "" : " " + kind.text()), config, null));
      }
    }
    return all;
  }

  private DeviceTuning.Layer layerOf(MoeCheckpoint checkpoint) {
    int wanted = layer == null ? checkpoint.layers().getFirst() : layer;
    if (!checkpoint.layers().contains(wanted)) {
      throw CliException.usage(
          "--layer is " + wanted + "; the MoE layers of " + model + " are " + checkpoint.layers());
    }
    MoeConfig config = checkpoint.config(wanted);
    Path name = Objects.requireNonNull(model).toAbsolutePath().normalize().getFileName();
    return new DeviceTuning.Layer(
        (name == null ? "model" : name) + " layer " + wanted,
        config.toBuilder().inputDtype(config.weightDtype()).build(),
        checkpoint.weights(wanted).experts());
  }

  private List<DeviceBench.Lora> grid() {
    List<DeviceBench.Lora> grid = new ArrayList<>();
    for (int n : (adapters.isEmpty() ? ADAPTERS : adapters).stream().distinct().sorted().toList()) {
      if (n == 0) {
        grid.add(DeviceBench.Lora.NONE);
      } else {
        for (int r : (ranks.isEmpty() ? List.of(RANK) : ranks).stream().distinct().toList()) {
          grid.add(new DeviceBench.Lora(r, n));
        }
      }
    }
    return grid;
  }

  private void requireRanges() {
    if (model != null && (!shapes.isEmpty() || !dtypes.isEmpty())) {
      throw CliException.usage(
          "--model brings its own sizes and dtype; leave out --shape, --dtype");
    }
    requireRange("--tokens", tokens, 1, 1 << 17);
    requireRange("--adapters", adapters, 0, 1024);
    requireRange("--rank", ranks, 1, 1016);
    if (limit != null && limit < 1) {
      throw CliException.usage("--limit is " + limit + ", must be at least 1 second");
    }
  }

  private static void requireRange(String name, List<Integer> values, int least, int most) {
    for (int v : values) {
      if (v < least || v > most) {
        throw CliException.usage(name + " is " + v + ", must be " + least + ".." + most);
      }
    }
  }
}
