package io.moe4j.backend.flashinfer;

import io.moe4j.api.DeviceException;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.spi.Tuner;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import java.util.Set;
import java.util.function.BooleanSupplier;
import java.util.function.Consumer;

/**
 * Measures the module's kernels in whole forwards: first those of the first product beside the
 * module's choice for the second, then those of the second beside the best of the first, then the
 * fastest few of both with each other. Pairs that come out close together are measured once more,
 * in turns, at full load, beside the module's choice: the lowest of many noisy figures is no figure
 * of its pair, and a card's power limit slows some kernels more than others. Only kernels that the
 * module itself calls valid for the shape are run.
 */
final class CutlassTuner implements Tuner {
  private static final int SAMPLES = 7;
  private static final double SAMPLE_NANOS = 1e6;
  private static final double WARM_NANOS = 3e6;

  /** Work before the last measurement: a card at full load is slower, by kernels differently so. */
  private static final double LOAD_NANOS = 150e6;

  private static final int MOST_REPLAYS = 50;

  /** Kernels of each product that are measured with each of the other's. */
  private static final int AGAIN = 3;

  /** Pairs that are measured once more, besides the module's choice. */
  private static final int FINALISTS = 3;

  /** How far above the fastest pair another may be to be measured once more. */
  private static final double CLOSE = 1.03;

  /** A first sample so far above the best pair's median that more samples change nothing. */
  private static final double HOPELESS = 1.25;

  /**
   * How far another kernel's output may be from that of the module's choice, relative to its size.
   */
  private static final double TOLERANCE = 0.02;

  private final MoeConfig config;
  private final Device device;
  private final DeviceStream stream;
  private final CutlassExperts experts;
  private final Path file;
  private Tactics current = Tactics.MODULES_OWN;

  CutlassTuner(
      MoeConfig config,
      ExpertWeights weights,
      Device device,
      CardKernels kernels,
      FlashInferModule module,
      FlashInferOptions options,
      Path file) {
    this.config = config;
    this.device = device;
    this.stream = device.defaultStream();
    this.file = file;
    this.experts =
        new CutlassExperts(
            config,
            weights,
            device,
            kernels,
            module,
            _ -> tokens -> current,
            options.withReplays(0));
  }

  /** A pair that cannot be taken, with the reason. */
  private static final class Rejected extends Exception {
    private static final long serialVersionUID = 1L;

    Rejected(String message) {
      super(message);
    }
  }

  @Override
  public Optional<Outcome> tune(List<Call> pass, BooleanSupplier goOn, Consumer<String> listener) {
    if (pass.isEmpty()) {
      throw new IllegalArgumentException("pass is empty, must have at least one forward");
    }
    int tokens = Math.toIntExact(pass.getFirst().inputs().hidden().size(0));
    for (Call c : pass) {
      if (c.lora() != null) {
        throw new IllegalArgumentException(CutlassSupport.NO_LORA);
      }
      if (c.inputs().hidden().size(0) != tokens) {
        throw new IllegalArgumentException(
            "pass mixes forwards of other sizes: all must have "
                + tokens
                + " tokens, like the first");
      }
    }
    try (Device.Buffer scratch = device.allocate(experts.workspaceBytes(tokens))) {
      return new Search(pass, new Workspace(scratch.memory()), goOn, listener).run(tokens);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    } finally {
      current = Tactics.MODULES_OWN;
    }
  }

  @Override
  public void close() {
    stream.synchronize();
    experts.close();
  }

  /**
   * A pair, as it is enqueued.
   *
   * @param graph of a pass; empty where nothing can be recorded
   * @param replays passes of a sample
   */
  private record Recorded(Tactics pair, Optional<Device.Graph> graph, int replays) {}

  /** One number of tokens. */
  private final class Search {
    private final List<Call> calls;
    private final Workspace workspace;
    private final BooleanSupplier goOn;
    private final Consumer<String> listener;
    private final List<String> dropped = new ArrayList<>();
    private final Set<Tactics> tried = new LinkedHashSet<>();
    private final Map<Tactics, Double> times = new HashMap<>();
    private Tactics best = Tactics.MODULES_OWN;
    private double micros;

    Search(List<Call> calls, Workspace workspace, BooleanSupplier goOn, Consumer<String> listener) {
      this.calls = calls;
      this.workspace = workspace;
      this.goOn = goOn;
      this.listener = listener;
    }

    Optional<Outcome> run(int tokens) throws IOException {
      CutlassScheme scheme = CutlassScheme.of(config).orElseThrow();
      current = Tactics.MODULES_OWN;
      forward();
      stream.synchronize();
      float[] expected = outputs();
      double builtIn;
      try {
        builtIn = measure(Tactics.MODULES_OWN, expected, Double.POSITIVE_INFINITY);
      } catch (Rejected e) {
        throw new DeviceException(
            "FlashInfer's own choice of tactics does not give the same result twice on "
                + device.info().name()
                + ": "
                + e.getMessage());
      }
      best = Tactics.MODULES_OWN;
      micros = builtIn;
      long h = scheme.padded(config.expertHiddenSize());
      long i = scheme.padded(config.intermediateSize());
      long rows = config.activation().isGated() ? 2 * i : i;
      Map<Long, Double> firsts = new HashMap<>();
      for (long t : experts.runner().validTactics(1, rows, h, scheme)) {
        if (!attempt(new Tactics(t, best.second()), expected, took -> firsts.put(t, took))) {
          return Optional.empty();
        }
      }
      Map<Long, Double> seconds = new HashMap<>();
      for (long t : experts.runner().validTactics(2, h, i, scheme)) {
        if (!attempt(new Tactics(best.first(), t), expected, took -> seconds.put(t, took))) {
          return Optional.empty();
        }
      }
      // Beside a slow kernel for the other product two good ones look alike.
      for (long first : fastest(firsts)) {
        for (long second : fastest(seconds)) {
          Tactics pair = new Tactics(first, second);
          if (!tried.contains(pair) && !attempt(pair, expected, _ -> {})) {
            return Optional.empty();
          }
        }
      }
      if (!goOn.getAsBoolean()) {
        return Optional.empty();
      }
      if (!times.isEmpty()) {
        times.put(Tactics.MODULES_OWN, builtIn);
        builtIn = decide(expected);
      }
      TacticFile.add(
          file,
          new TacticFile.Entry(
              TacticKey.of(
                  config, device.info(), experts.runner().library(), experts.runner().isFused()),
              tokens,
              best.first(),
              best.second(),
              micros,
              builtIn));
      return Optional.of(
          new Outcome(
              best.toString(),
              micros,
              Tactics.MODULES_OWN.toString(),
              builtIn,
              tried.size(),
              dropped));
    }

    private static List<Long> fastest(Map<Long, Double> times) {
      return times.entrySet().stream()
          .sorted(Map.Entry.comparingByValue())
          .limit(AGAIN)
          .map(Map.Entry::getKey)
          .toList();
    }

    /**
     * Measures a pair, and takes it if it is the fastest so far.
     *
     * @param time told how long a forward took, if it ran
     * @return false if the search is to end
     */
    private boolean attempt(Tactics pair, float[] expected, Consumer<Double> time) {
      if (!goOn.getAsBoolean()) {
        return false;
      }
      tried.add(pair);
      listener.accept(tried.size() + ": " + pair);
      try {
        double one = measure(pair, expected, micros);
        time.accept(one);
        times.put(pair, one);
        if (one < micros) {
          micros = one;
          best = pair;
        }
      } catch (Rejected e) {
        dropped.add(pair + ": " + e.getMessage());
      }
      return true;
    }

    /**
     * Measures the fastest pairs and the module's choice in turns, and takes the fastest.
     *
     * @return microseconds of a forward by the module's choice
     */
    private double decide(float[] expected) {
      List<Tactics> last =
          times.entrySet().stream()
              .filter(
                  e -> e.getValue() <= CLOSE * micros && !e.getKey().equals(Tactics.MODULES_OWN))
              .sorted(Map.Entry.comparingByValue())
              .limit(FINALISTS)
              .map(Map.Entry::getKey)
              .toList();
      List<Recorded> all = new ArrayList<>();
      try {
        all.add(record(Tactics.MODULES_OWN));
        for (Tactics pair : last) {
          try {
            all.add(record(pair));
          } catch (DeviceException e) {
            stream.synchronize(); // a card that failed says so again here
            dropped.add(pair + ": " + e.getMessage());
            continue;
          }
          try {
            compare(expected, outputs());
          } catch (Rejected e) {
            all.removeLast().graph().ifPresent(Device.Graph::close);
            dropped.add(pair + ": " + e.getMessage());
          }
        }
        long begin = System.nanoTime();
        do {
          round(all);
        } while (System.nanoTime() - begin < LOAD_NANOS);
        double[][] samples = new double[all.size()][SAMPLES];
        for (int s = 0; s < SAMPLES; s++) {
          double[] took = round(all);
          for (int i = 0; i < took.length; i++) {
            samples[i][s] = took[i];
          }
        }
        double[] medians = Arrays.stream(samples).mapToDouble(CutlassTuner::median).toArray();
        micros = Double.POSITIVE_INFINITY;
        for (int i = 0; i < medians.length; i++) {
          if (medians[i] < micros) {
            micros = medians[i];
            best = all.get(i).pair();
          }
        }
        return medians[0];
      } finally {
        all.forEach(r -> r.graph().ifPresent(Device.Graph::close));
      }
    }

    /** {@return a sample of each} */
    private double[] round(List<Recorded> all) {
      double[] took = new double[all.size()];
      for (int i = 0; i < took.length; i++) {
        current = all.get(i).pair();
        took[i] = sample(pass(all.get(i).graph()), all.get(i).replays());
      }
      return took;
    }

    /** Runs a pass by a pair, and records another. */
    private Recorded record(Tactics pair) {
      current = pair;
      forward();
      stream.synchronize();
      return new Recorded(
          pair,
          device.capture(stream, this::forward),
          replays(1e3 * calls.size() * Objects.requireNonNull(times.get(pair))));
    }

    private Runnable pass(Optional<Device.Graph> graph) {
      return graph.<Runnable>map(g -> () -> g.launch(stream)).orElse(this::forward);
    }

    /** {@return microseconds of a forward, of some passes in a row} */
    private double sample(Runnable pass, int replays) {
      long begin = System.nanoTime();
      for (int r = 0; r < replays; r++) {
        pass.run();
      }
      stream.synchronize();
      return (System.nanoTime() - begin) / 1e3 / replays / calls.size();
    }

    private void forward() {
      for (Call c : calls) {
        experts.apply(c.inputs(), null, workspace, stream);
      }
    }

    /**
     * Times a pair, roughly where it is hopeless; one that is faster must also give the right
     * output, the same each time.
     *
     * @return microseconds of a forward
     */
    private double measure(Tactics tactics, float[] expected, double toBeat) throws Rejected {
      current = tactics;
      try {
        forward();
      } catch (DeviceException e) {
        stream.synchronize(); // a card that failed says so again here
        throw new Rejected(String.valueOf(e.getMessage()));
      }
      stream.synchronize();
      Optional<Device.Graph> graph = device.capture(stream, this::forward);
      try {
        double took = time(pass(graph), toBeat);
        if (took < toBeat) {
          float[] replayed = outputs();
          compare(expected, replayed);
          forward();
          if (!experts.runner().isFused() && !Arrays.equals(replayed, outputs())) {
            throw new Rejected("its result varies from run to run");
          }
        }
        return took;
      } finally {
        graph.ifPresent(Device.Graph::close);
      }
    }

    private void compare(float[] expected, float[] got) throws Rejected {
      double difference = 0;
      double size = 0;
      for (int j = 0; j < expected.length; j++) {
        double d = got[j] - expected[j];
        difference += d * d;
        size += (double) expected[j] * expected[j];
      }
      double relative = Math.sqrt(difference / Math.max(size, Double.MIN_NORMAL));
      // Written so that NaN is an error as well.
      if (!(relative <= TOLERANCE)) {
        throw new Rejected(
            "its result is %.3g away from that of the module's choice".formatted(relative));
      }
    }

    /** {@return all outputs, on the host} */
    private float[] outputs() {
      float[] all = new float[0];
      try (Arena arena = Arena.ofConfined()) {
        for (Call c : calls) {
          Tensor output = c.inputs().output();
          MemorySegment bytes = arena.allocate(output.dtype().byteSize(output.elementCount()), 64);
          Tensor host = Tensor.of(output.dtype(), bytes, output.shape());
          device.copy(output, host, stream);
          stream.synchronize();
          float[] values = host.toFloats();
          int at = all.length;
          all = Arrays.copyOf(all, at + values.length);
          System.arraycopy(values, 0, all, at, values.length);
        }
      }
      return all;
    }

    /** {@return the median for a forward in microseconds; of one sample if that is hopeless} */
    private double time(Runnable pass, double toBeat) {
      long begin = System.nanoTime();
      int warm = 0;
      double one;
      do {
        pass.run();
        stream.synchronize();
        warm++;
        one = (double) (System.nanoTime() - begin) / warm;
      } while (one * warm < WARM_NANOS);
      int replays = replays(one);
      double[] times = new double[SAMPLES];
      for (int s = 0; s < SAMPLES; s++) {
        times[s] = sample(pass, replays);
        if (s == 0 && times[0] > HOPELESS * toBeat) {
          return times[0];
        }
      }
      return median(times);
    }
  }

  /** {@return passes of a sample, of which one takes so long} */
  private static int replays(double nanos) {
    return (int) Math.clamp(Math.ceil(SAMPLE_NANOS / nanos), 1, MOST_REPLAYS);
  }

  private static double median(double[] samples) {
    double[] sorted = samples.clone();
    Arrays.sort(sorted);
    return sorted[sorted.length / 2];
  }
}
