package io.moe4j.cuda.tuning;

import io.moe4j.api.DeviceException;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.spi.ModularExperts;
import io.moe4j.api.spi.Tuner;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.DeviceBuffer;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Optional;
import java.util.Set;
import java.util.function.BooleanSupplier;
import java.util.function.Consumer;
import java.util.function.Function;
import org.jspecify.annotations.Nullable;

/**
 * Tunes one layer: forwards are recorded and replayed, as engines run them. A plan must give the
 * built-in choice's output within rounding, and the same bits from run to run. Not thread-safe.
 *
 * @param <Q> what a plan is chosen for: the sizes of a forward
 * @param <P> plans, values with {@code equals}
 * @param <E> what is kept of one
 * @since 0.2.0
 */
public final class PlanTuner<Q, P, E extends TunedEntry> implements Tuner {
  private static final int POISON = 0xff;
  private static final int LOOK_SAMPLES = 7;
  private static final int AGAIN_SAMPLES = 5;
  private static final double LOOK_NANOS = 1e6;
  private static final double AGAIN_NANOS = 2e6;
  private static final double WARM_NANOS = 3e6;
  private static final double MUCH_SLOWER = 1.5;
  private static final int MAX_REPLAYS = 50;

  /**
   * Whose plans are tuned.
   *
   * @param <Q> sizes of a forward
   * @param <P> plans
   * @param <E> entries
   */
  public interface Backend<Q, P, E extends TunedEntry> {
    /**
     * {@return the layer, whose forwards run with the plans they are told}
     *
     * @param choice asked in each forward
     */
    ModularExperts experts(Function<Q, P> choice);

    /**
     * {@return the choice without tuning}
     *
     * @param problem sizes of a forward
     */
    P builtIn(Q problem);

    /**
     * Searches with {@link PlanRace#run}.
     *
     * @param problem sizes of a forward
     * @param meter measures it
     * @param goOn asked before each measurement
     * @return what was found; empty if it was not to go on
     * @throws PlanRace.Rejected if the built-in choice is
     */
    Optional<PlanRace.Found<P>> search(Q problem, PlanRace.Meter<P> meter, BooleanSupplier goOn)
        throws PlanRace.Rejected;

    /**
     * {@return what is kept of a plan}
     *
     * @param problem sizes of a forward
     * @param found the plan and its time
     */
    E entry(Q problem, PlanRace.Found<P> found);

    /**
     * {@return a plan for people: the parts that can differ}
     *
     * @param plan any
     */
    String text(P plan);
  }

  private final CudaDevice device;
  private final DeviceStream stream;
  private final Backend<Q, P, E> backend;
  private final ModularExperts experts;
  private final TuningFile<E> form;
  private final TunedTable.Key key;
  private final Path file;
  private @Nullable P forced;
  private @Nullable Q seen;

  /**
   * Prepares a layer.
   *
   * @param device where; outlives this
   * @param backend whose plans
   * @param form how the file is written
   * @param key of the layer
   * @param file where choices go
   */
  public PlanTuner(
      CudaDevice device,
      Backend<Q, P, E> backend,
      TuningFile<E> form,
      TunedTable.Key key,
      Path file) {
    this.device = device;
    this.stream = device.defaultStream();
    this.backend = backend;
    this.form = form;
    this.key = key;
    this.file = file;
    this.experts = backend.experts(this::choose);
  }

  private P choose(Q problem) {
    seen = problem;
    P plan = forced;
    return plan != null ? plan : backend.builtIn(problem);
  }

  @Override
  public Optional<Outcome> tune(List<Call> pass, BooleanSupplier goOn, Consumer<String> listener) {
    if (pass.isEmpty()) {
      throw new IllegalArgumentException("pass is empty, must have at least one forward");
    }
    int tokens = Math.toIntExact(pass.getFirst().inputs().hidden().size(0));
    for (Call c : pass) {
      if (c.inputs().hidden().size(0) != tokens
          || (c.lora() == null) != (pass.getFirst().lora() == null)) {
        throw new IllegalArgumentException(
            "pass mixes forwards of other sizes: all must have as many tokens as the first, "
                + tokens
                + ", and adapters if that has");
      }
    }
    try (DeviceBuffer scratch = device.allocate(experts.workspaceBytes(tokens));
        Pass run = new Pass(pass, new Workspace(scratch.memory()), listener)) {
      Q problem = run.reference();
      PlanRace.Found<P> found = backend.search(problem, run, goOn).orElse(null);
      if (found == null) {
        return Optional.empty();
      }
      E entry = backend.entry(problem, found);
      form.merge(file, new TunedTable<>(key, List.of(entry)));
      return Optional.of(
          new Outcome(
              backend.text(found.plan()),
              found.micros(),
              backend.text(backend.builtIn(problem)),
              found.builtInMicros(),
              found.measured(),
              found.dropped()));
    } catch (PlanRace.Rejected e) {
      throw new DeviceException(
          "the built-in choice does not give the same result twice on "
              + device
              + ": "
              + e.getMessage());
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    } finally {
      forced = null;
    }
  }

  @Override
  public void close() {
    stream.synchronize();
    experts.close();
  }

  /** Forwards of one size, run in turn. */
  private final class Pass implements PlanRace.Meter<P>, AutoCloseable {
    private final List<Call> calls;
    private final Workspace workspace;
    private final Consumer<String> listener;
    private final Set<P> checked = new HashSet<>();
    private OutputSamples expected;
    private int looks;

    Pass(List<Call> calls, Workspace workspace, Consumer<String> listener) {
      this.calls = calls;
      this.workspace = workspace;
      this.listener = listener;
      this.expected = OutputSamples.NONE;
    }

    private void run() {
      for (Call c : calls) {
        experts.apply(c.inputs(), c.lora(), workspace, stream);
      }
    }

    private List<Tensor> outputs() {
      return calls.stream().map(c -> c.inputs().output()).toList();
    }

    /** Runs the built-in choice: what every other is compared with. */
    Q reference() {
      forced = null;
      poison();
      run();
      stream.synchronize();
      expected = OutputSamples.all(device, outputs());
      Q p = seen;
      if (p == null) {
        throw new IllegalStateException("a forward of no tokens cannot be measured");
      }
      return p;
    }

    private void poison() {
      outputs().forEach(o -> device.fill(o, POISON, stream));
    }

    @Override
    public double look(P plan, double best) throws PlanRace.Rejected {
      listener.accept(++looks + ": " + backend.text(plan));
      return measure(plan, best, LOOK_SAMPLES, LOOK_NANOS, false);
    }

    @Override
    public double lookAgain(P plan) throws PlanRace.Rejected {
      listener.accept("again: " + backend.text(plan));
      return measure(plan, Double.POSITIVE_INFINITY, AGAIN_SAMPLES, AGAIN_NANOS, checked.add(plan));
    }

    private double measure(P plan, double best, int samples, double sampleNanos, boolean whole)
        throws PlanRace.Rejected {
      forced = plan;
      poison();
      stream.synchronize();
      try {
        run();
      } catch (DeviceException e) {
        // A kernel that this card cannot load; a card that failed says so again below.
        stream.synchronize();
        throw new PlanRace.Rejected(String.valueOf(e.getMessage()));
      }
      stream.synchronize();
      OutputSamples once =
          whole ? OutputSamples.all(device, outputs()) : OutputSamples.some(device, outputs());
      Optional<String> wrong = expected.differs(once);
      if (wrong.isPresent()) {
        throw new PlanRace.Rejected(wrong.get());
      }
      try (Device.Graph graph = device.capture(stream, this::run).orElseThrow()) {
        poison(); // what the replays do not write shows
        double micros = time(graph, best, samples, sampleNanos) / calls.size();
        OutputSamples again =
            whole ? OutputSamples.all(device, outputs()) : OutputSamples.some(device, outputs());
        if (!once.sameBits(again)) {
          throw new PlanRace.Rejected("its result varies from run to run");
        }
        return micros;
      }
    }

    /** {@return the median replay in microseconds} */
    private double time(Device.Graph graph, double best, int samples, double sampleNanos) {
      graph.launch(stream);
      stream.synchronize();
      long begin = System.nanoTime();
      int warm = 0;
      double one;
      do {
        graph.launch(stream);
        stream.synchronize();
        warm++;
        one = (double) (System.nanoTime() - begin) / warm;
        if (one / 1e3 / calls.size() > best * MUCH_SLOWER && warm > 1) {
          return one / 1e3;
        }
      } while (one * warm < WARM_NANOS);
      int replays = (int) Math.clamp(Math.ceil(sampleNanos / one), 1, MAX_REPLAYS);
      double[] times = new double[samples];
      for (int s = 0; s < samples; s++) {
        long start = System.nanoTime();
        for (int r = 0; r < replays; r++) {
          graph.launch(stream);
        }
        stream.synchronize();
        times[s] = (System.nanoTime() - start) / 1e3 / replays;
      }
      Arrays.sort(times);
      return times[samples / 2];
    }

    @Override
    public void close() {
      stream.synchronize();
    }
  }
}
