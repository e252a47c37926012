package io.moe4j.cli.bench;

import io.moe4j.api.DeviceException;
import io.moe4j.api.comm.CommConfig;
import io.moe4j.api.comm.CommProvider;
import io.moe4j.api.comm.Communicator;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.tensor.DType;
import io.moe4j.oracle.FoundBackend;
import io.moe4j.oracle.MoeOracle;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.BrokenBarrierException;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.function.Consumer;
import org.jspecify.annotations.Nullable;

/**
 * Measures layers that several GPUs of this machine share, a thread of this JVM each, against the
 * same tokens on one GPU: recorded forwards, replayed together; the time of all tokens is that of
 * the slowest rank. Also the operations between the ranks alone, with the sizes that the exchange
 * gives them. Not thread-safe.
 */
public final class RanksBench {
  private final Plan plan;
  private final RanksLayout layout;
  private final List<Row> rows = new ArrayList<>();
  private final CyclicBarrier barrier;
  private String group = "";
  private String exchange = "";

  /**
   * What is measured.
   *
   * @param oracle who chooses; stays the caller's
   * @param backend asked for by name, or null
   * @param layout of the ranks
   * @param tokens of all ranks together, multiples of their number unless replicated
   * @param grid adapters, the base model first
   * @param rest milliseconds without work before each case
   */
  public record Plan(
      MoeOracle oracle,
      @Nullable String backend,
      RanksLayout layout,
      List<Integer> tokens,
      List<DeviceBench.Lora> grid,
      int rest) {
    /** Copies the lists. */
    public Plan {
      tokens = List.copyOf(tokens);
      grid = List.copyOf(grid);
    }
  }

  /**
   * One case; times in microseconds for one forward of all tokens.
   *
   * @param shape name
   * @param tokens of all ranks together
   * @param lora adapters
   * @param alone on one GPU
   * @param together on all
   * @param empty on all, of tokens without experts: what is not the products
   * @param gather the communicator's operation that brings rows, alone; 0 with replicated tokens
   * @param scatter its operation that brings sums back, alone; 0 with replicated tokens
   * @param allReduce its operation that brings sums to all, alone; 0 without replicated tokens
   * @param expertsLimit the factor that the routing allows where a rank's time goes with the
   *     experts it has rows for
   * @param rowsLimit and where it goes with the rows
   */
  public record Row(
      String shape,
      int tokens,
      DeviceBench.Lora lora,
      double alone,
      double together,
      double empty,
      double gather,
      double scatter,
      double allReduce,
      double expertsLimit,
      double rowsLimit) {
    /** {@return how much faster all are than one} */
    public double factor() {
      return alone / together;
    }
  }

  /**
   * A bench.
   *
   * @param plan what is measured
   */
  public RanksBench(Plan plan) {
    this.plan = plan;
    this.layout = plan.layout();
    this.barrier = new CyclicBarrier(layout.ranks());
  }

  private CommProvider provider(Platform platform) {
    List<String> refused = new ArrayList<>();
    for (CommProvider p : plan.oracle().catalog().commProviders()) {
      if (p.deviceType().equals(DeviceType.CUDA)) {
        String why = p.whyUnsupported(platform).orElse("");
        if (why.isEmpty()) {
          return p;
        }
        refused.add(p.name() + ": " + why);
      }
    }
    throw new DeviceException(
        "nothing connects GPUs"
            + (refused.isEmpty()
                ? "; add the jar comm-nccl"
                : " (" + String.join(" | ", refused) + ")"));
  }

  /**
   * Measures one shape over the grid.
   *
   * @param shape the shape
   * @param listener told before each case
   * @throws IllegalArgumentException if the ranks cannot share the shape evenly
   * @throws DeviceException if the machine has fewer GPUs, or nothing that connects them
   */
  public void run(BenchShape shape, Consumer<String> listener) {
    layout
        .whyNot(shape)
        .ifPresent(why -> {
          throw new IllegalArgumentException(why);
        });
    List<Integer> tokens = plan.tokens();
    Platform platform = plan.oracle().catalog().detectPlatform();
    long cards =
        platform.devices().stream().filter(d -> d.id().type().equals(DeviceType.CUDA)).count();
    int ranks = layout.ranks();
    if (cards < ranks) {
      throw new DeviceException(
          "--ranks is " + ranks + ", this machine has " + cards + " CUDA devices");
    }
    CommProvider provider = provider(platform);
    MoeConfig any = config(shape, ranks, DeviceBench.Lora.NONE, ParallelConfig.SINGLE);
    FoundBackend chosen = plan.oracle().select(any, platform, plan.backend()).chosenBackend();
    for (DeviceBench.Lora lora : plan.grid()) {
      double[] alone = new double[tokens.size()];
      try (Device first =
          plan.oracle().catalog().openDevice(chosen, new DeviceId(DeviceType.CUDA, 0))) {
        try (RankPart whole =
            new RankPart(plan, shape, lora, RanksLayout.ONE, 0, first, null, () -> {})) {
          for (int i = 0; i < alone.length; i++) {
            listener.accept(what(shape, tokens.get(i), lora) + " on one");
            alone[i] = whole.forward(tokens.get(i), false);
          }
        }
      }
      List<double[][]> times = together(shape, lora, chosen, provider, listener);
      for (int i = 0; i < alone.length; i++) {
        double[] worst = new double[5];
        for (double[][] rank : times) {
          for (int n = 0; n < worst.length; n++) {
            worst[n] = Math.max(worst[n], rank[i][n]);
          }
        }
        DeviceBatch[] batches = DeviceBatch.rotating(shape, tokens.get(i));
        rows.add(
            new Row(
                shape.name(),
                tokens.get(i),
                lora,
                alone[i],
                worst[0],
                worst[1],
                worst[2],
                worst[3],
                worst[4],
                layout.limit(batches, shape.numExperts(), false),
                layout.limit(batches, shape.numExperts(), true)));
      }
    }
  }

  private static String what(BenchShape shape, int tokens, DeviceBench.Lora lora) {
    return shape.name()
        + " T="
        + tokens
        + (lora.adapters() == 0 ? "" : " rank " + lora.rank() + " x " + lora.adapters());
  }

  /** By rank and number of tokens: what {@link #times} gives. */
  private List<double[][]> together(
      BenchShape shape,
      DeviceBench.Lora lora,
      FoundBackend chosen,
      CommProvider provider,
      Consumer<String> listener) {
    group = provider.newGroup();
    int ranks = layout.ranks();
    List<Future<double[][]>> running = new ArrayList<>();
    try (ExecutorService threads = Executors.newFixedThreadPool(ranks)) {
      for (int r = 0; r < ranks; r++) {
        int rank = r;
        running.add(
            threads.submit(() -> {
              try (Device device =
                      plan.oracle()
                          .catalog()
                          .openDevice(chosen, new DeviceId(DeviceType.CUDA, rank));
                  Communicator mine = provider.open(CommConfig.of(group, rank, ranks), device)) {
                try (RankPart part =
                    new RankPart(plan, shape, lora, layout, rank, device, mine, this::meet)) {
                  if (rank == 0) {
                    exchange = part.exchange();
                  }
                  double[][] all = new double[plan.tokens().size()][];
                  for (int i = 0; i < all.length; i++) {
                    int t = plan.tokens().get(i);
                    if (rank == 0) {
                      listener.accept(what(shape, t, lora) + " on " + ranks);
                    }
                    all[i] = times(part, t);
                  }
                  return all;
                } catch (Throwable e) {
                  barrier.reset();
                  mine.abort(e);
                  throw e;
                }
              }
            }));
      }
      List<double[][]> times = new ArrayList<>();
      for (Future<double[][]> f : running) {
        times.add(f.get());
      }
      return times;
    } catch (ExecutionException e) {
      throw new DeviceException("a rank failed: " + e.getCause(), e);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new DeviceException("interrupted", e);
    }
  }

  /** Forward, one without experts, gather, scatter, all-reduce. */
  private double[] times(RankPart part, int tokens) {
    boolean replicated = layout.replicated();
    return new double[] {
      part.forward(tokens, false),
      part.forward(tokens, true),
      replicated ? 0 : part.gather(tokens),
      replicated ? 0 : part.scatter(tokens),
      replicated ? part.allReduce(tokens) : 0
    };
  }

  private void meet() {
    try {
      barrier.await();
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new DeviceException("interrupted", e);
    } catch (BrokenBarrierException e) {
      throw new DeviceException("another rank failed", e);
    }
  }

  static MoeConfig config(
      BenchShape shape, int maxTokens, DeviceBench.Lora lora, ParallelConfig parallel) {
    MoeConfig.Builder b = shape.config(DType.BF16, maxTokens).parallel(parallel);
    if (lora.adapters() > 0) {
      b.lora(new LoraConfig(lora.adapters(), lora.rank()));
    }
    return b.build();
  }

  /** {@return what was measured so far} */
  public List<Row> rows() {
    return List.copyOf(rows);
  }

  /** {@return what was measured so far, to be printed} */
  public RanksReport report() {
    return new RanksReport(layout, exchange, rows);
  }
}
