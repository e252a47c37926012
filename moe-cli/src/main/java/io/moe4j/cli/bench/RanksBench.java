package io.moe4j.cli.bench;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.api.DeviceException;
import io.moe4j.api.comm.CommConfig;
import io.moe4j.api.comm.CommProvider;
import io.moe4j.api.comm.Communicator;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.lora.SlotsKey;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cli.json.Json;
import io.moe4j.lora.PunicaProviders;
import io.moe4j.oracle.FoundBackend;
import io.moe4j.oracle.MoeForward;
import io.moe4j.oracle.MoeLayer;
import io.moe4j.oracle.MoeOracle;
import io.moe4j.oracle.MoeSession;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.BrokenBarrierException;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.LockSupport;
import java.util.function.Consumer;
import org.jspecify.annotations.Nullable;

/**
 * Measures layers whose experts are shared by several GPUs of this machine, a thread of this JVM
 * each, against the same tokens on one GPU: recorded forwards, replayed together; the time of all
 * tokens is that of the slowest rank. Also the operations between the ranks alone, with the sizes
 * that the exchange gives them. Not thread-safe.
 */
public final class RanksBench {
  private static final int SAMPLES = 15;
  private static final int WARM = 20;
  private static final int REPLAYS = 10;
  private static final int OPERATIONS = 10;

  private final MoeOracle oracle;
  private final @Nullable String backend;
  private final int ranks;
  private final List<Integer> tokens;
  private final List<DeviceBench.Lora> grid;
  private final int rest;
  private final List<Row> rows = new ArrayList<>();
  private final CyclicBarrier barrier;
  private String group = "";

  /**
   * One case; times in microseconds for one forward of all tokens.
   *
   * @param shape name
   * @param tokens of all ranks together
   * @param lora adapters
   * @param alone on one GPU
   * @param together on all
   * @param empty on all, of tokens without experts: what is not the products
   * @param gather NCCL's operation that brings rows, alone
   * @param scatter NCCL's operation that brings sums back, alone
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
   * @param oracle who chooses; stays the caller's
   * @param backend asked for by name, or null
   * @param ranks GPUs
   * @param tokens of all ranks together, multiples of {@code ranks}
   * @param grid adapters, the base model first
   * @param rest milliseconds without work before each case
   */
  public RanksBench(
      MoeOracle oracle,
      @Nullable String backend,
      int ranks,
      List<Integer> tokens,
      List<DeviceBench.Lora> grid,
      int rest) {
    this.oracle = oracle;
    this.backend = backend;
    this.ranks = ranks;
    this.tokens = tokens;
    this.grid = grid;
    this.rest = rest;
    this.barrier = new CyclicBarrier(ranks);
  }

  private CommProvider provider(Platform platform) {
    List<String> refused = new ArrayList<>();
    for (CommProvider p : oracle.catalog().commProviders()) {
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
   * @param shape the shape; its experts divide by the ranks
   * @param listener told before each case
   * @throws DeviceException if the machine has fewer GPUs, or nothing that connects them
   */
  public void run(BenchShape shape, Consumer<String> listener) {
    Platform platform = oracle.catalog().detectPlatform();
    long cards =
        platform.devices().stream().filter(d -> d.id().type().equals(DeviceType.CUDA)).count();
    if (cards < ranks) {
      throw new DeviceException(
          "--ranks is " + ranks + ", this machine has " + cards + " CUDA devices");
    }
    if (shape.numExperts() % ranks != 0) {
      throw new DeviceException(
          shape.name() + " has " + shape.numExperts() + " experts, must divide by " + ranks);
    }
    CommProvider provider = provider(platform);
    MoeConfig any = config(shape, ranks, DeviceBench.Lora.NONE, ParallelConfig.SINGLE);
    FoundBackend chosen = oracle.select(any, platform, backend).chosenBackend();
    for (DeviceBench.Lora lora : grid) {
      double[] alone = new double[tokens.size()];
      try (Device first = oracle.catalog().openDevice(chosen, new DeviceId(DeviceType.CUDA, 0))) {
        try (Part whole = new Part(shape, lora, first, ParallelConfig.SINGLE, null)) {
          for (int i = 0; i < alone.length; i++) {
            listener.accept(what(shape, tokens.get(i), lora) + " on one");
            alone[i] = whole.forward(tokens.get(i), false);
          }
        }
      }
      List<double[][]> times = together(shape, lora, chosen, provider, listener);
      for (int i = 0; i < alone.length; i++) {
        double[] worst = new double[4];
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
                DeviceBatch.limit(batches, shape.numExperts(), ranks, false),
                DeviceBatch.limit(batches, shape.numExperts(), ranks, true)));
      }
    }
  }

  private static String what(BenchShape shape, int tokens, DeviceBench.Lora lora) {
    return shape.name()
        + " T="
        + tokens
        + (lora.adapters() == 0 ? "" : " rank " + lora.rank() + " x " + lora.adapters());
  }

  /** By rank and number of tokens: forward, one without experts, gather, scatter. */
  private List<double[][]> together(
      BenchShape shape,
      DeviceBench.Lora lora,
      FoundBackend chosen,
      CommProvider provider,
      Consumer<String> listener) {
    group = provider.newGroup();
    List<Future<double[][]>> running = new ArrayList<>();
    try (ExecutorService threads = Executors.newFixedThreadPool(ranks)) {
      for (int r = 0; r < ranks; r++) {
        int rank = r;
        running.add(
            threads.submit(() -> {
              try (Device device =
                      oracle.catalog().openDevice(chosen, new DeviceId(DeviceType.CUDA, rank));
                  Communicator mine = provider.open(CommConfig.of(group, rank, ranks), device)) {
                try (Part part =
                    new Part(shape, lora, device, ParallelConfig.expert(ranks, rank), mine)) {
                  double[][] all = new double[tokens.size()][];
                  for (int i = 0; i < all.length; i++) {
                    if (rank == 0) {
                      listener.accept(what(shape, tokens.get(i), lora) + " on " + ranks);
                    }
                    int t = tokens.get(i);
                    all[i] =
                        new double[] {
                          part.forward(t, false),
                          part.forward(t, true),
                          part.gather(t),
                          part.scatter(t)
                        };
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

  private MoeConfig config(
      BenchShape shape, int maxTokens, DeviceBench.Lora lora, ParallelConfig parallel) {
    MoeConfig.Builder b = shape.config(DType.BF16, maxTokens).parallel(parallel);
    if (lora.adapters() > 0) {
      b.lora(new LoraConfig(lora.adapters(), lora.rank()));
    }
    return b.build();
  }

  /** One rank's layer, or the whole on one GPU. */
  private final class Part implements AutoCloseable {
    private final BenchShape shape;
    private final Device device;
    private final DeviceStream stream;
    private final @Nullable Communicator communicator;
    private final int rank;
    private final int size;
    private final DeviceModel model;
    private final MoeLayer layer;
    private final List<LoraLayer> slots = new ArrayList<>();
    private final SlotsKey key = new SlotsKey("bench");
    private @Nullable PunicaWrapper punica;

    Part(
        BenchShape shape,
        DeviceBench.Lora lora,
        Device device,
        ParallelConfig parallel,
        @Nullable Communicator communicator) {
      this.shape = shape;
      this.device = device;
      this.stream = device.defaultStream();
      this.communicator = communicator;
      this.rank = parallel.epRank();
      this.size = parallel.epSize();
      BenchShape mine =
          new BenchShape(
              shape.name(),
              shape.numExperts() / size,
              Math.min(shape.topK(), shape.numExperts() / size),
              shape.hiddenSize(),
              shape.intermediateSize());
      int most = tokens.stream().mapToInt(Integer::intValue).max().orElse(ranks);
      model = new DeviceModel(mine, device);
      MoeLayer.Builder builder =
          MoeLayer.builder(
                  config(shape, Math.ceilDiv(most, size), lora, parallel),
                  model.weights(BenchWeights.BF16))
              .oracle(oracle)
              .backend(backend)
              .device(device);
      if (communicator != null) {
        builder.communicator(communicator);
      }
      layer = builder.build();
      for (int a = 0; a < lora.adapters(); a++) {
        slots.add(model.adapter(lora.rank()));
      }
    }

    private PunicaWrapper punica() {
      PunicaWrapper wrapper = punica;
      if (wrapper == null) {
        wrapper = PunicaProviders.open(device);
        punica = wrapper;
      }
      return wrapper;
    }

    /**
     * Microseconds of a forward of all ranks' tokens.
     *
     * @param empty whether no token has an expert
     */
    double forward(int all, boolean empty) {
      int count = all / size;
      int from = count * rank;
      DeviceBatch[] batches = DeviceBatch.rotating(shape, all);
      List<MoeForward> pass = new ArrayList<>();
      try (DeviceModel room = model.more();
          MoeSession session = layer.newSession(count)) {
        for (DeviceBatch b : batches) {
          Tensor logits = room.put(b.logits().narrow(0, from, count));
          Tensor output = room.empty(DType.BF16, count, shape.hiddenSize());
          MoeForward f = MoeForward.of(room.hidden(count), output);
          if (empty) {
            int k = shape.topK();
            int[] none = new int[count * k];
            Arrays.fill(none, -1);
            f =
                f.withTopk(
                    room.put(Tensor.ofInts(none, count, k)),
                    room.put(Tensor.ofFloats(new float[count * k], count, k)));
          } else {
            f = f.withRouterLogits(logits);
          }
          if (!slots.isEmpty()) {
            Tensor mapping = room.put(b.mapping(all, slots.size()).narrow(0, from, count));
            f = f.withLora(new DeviceAdapters(key, slots, mapping, this::punica));
          }
          pass.add(f);
        }
        LockSupport.parkNanos(TimeUnit.MILLISECONDS.toNanos(rest));
        return micros(() -> pass.forEach(f -> session.forward(f, stream))) / pass.size();
      }
    }

    /** Microseconds of the operation that brings all rows to all ranks. */
    double gather(int all) {
      int n = all / size;
      int k = shape.topK();
      boolean adapters = !slots.isEmpty();
      try (DeviceModel room = model.more()) {
        List<Tensor> send = new ArrayList<>();
        List<Tensor> receive = new ArrayList<>();
        send.add(room.hidden(n));
        send.add(room.empty(DType.I32, n, k));
        send.add(room.empty(DType.F32, n, k));
        receive.add(room.empty(DType.BF16, all, shape.hiddenSize()));
        receive.add(room.empty(DType.I32, all, k));
        receive.add(room.empty(DType.F32, all, k));
        if (adapters) {
          send.add(room.empty(DType.I32, n));
          receive.add(room.empty(DType.I32, all));
        }
        return operations(c -> c.allGather(send, receive, stream));
      }
    }

    /** Microseconds of the operation that brings sums back. */
    double scatter(int all) {
      try (DeviceModel room = model.more()) {
        Tensor send = room.hidden(all);
        Tensor receive = room.empty(DType.BF16, all / size, shape.hiddenSize());
        return operations(c -> c.reduceScatter(send, receive, stream));
      }
    }

    private double operations(Consumer<Communicator> one) {
      Communicator c = communicator;
      return c == null
          ? 0
          : micros(() -> {
            for (int i = 0; i < OPERATIONS; i++) {
              one.accept(c);
            }
          })
              / OPERATIONS;
    }

    /** All ranks make as many launches: they wait for each other on the cards. */
    private double micros(Runnable work) {
      work.run(); // loads the kernels and connects
      stream.synchronize();
      try (Device.Graph graph =
          device
              .capture(stream, work)
              .orElseThrow(() -> new DeviceException(device.info().id() + " records no graphs"))) {
        launch(graph, WARM);
        double[] samples = new double[SAMPLES];
        for (int s = 0; s < SAMPLES; s++) {
          meet();
          long start = System.nanoTime();
          launch(graph, REPLAYS);
          samples[s] = (System.nanoTime() - start) / 1e3 / REPLAYS;
        }
        Arrays.sort(samples);
        return samples[SAMPLES / 2];
      }
    }

    private void launch(Device.Graph graph, int times) {
      for (int r = 0; r < times; r++) {
        graph.launch(stream);
      }
      stream.synchronize();
    }

    private void meet() {
      if (communicator == null) {
        return;
      }
      try {
        barrier.await();
      } catch (InterruptedException e) {
        Thread.currentThread().interrupt();
        throw new DeviceException("interrupted", e);
      } catch (BrokenBarrierException e) {
        throw new DeviceException("another rank failed", e);
      }
    }

    @Override
    public void close() {
      layer.close();
      if (punica != null) {
        punica.close();
      }
      model.close();
    }
  }

  /** {@return what was measured so far} */
  public List<Row> rows() {
    return List.copyOf(rows);
  }

  /** {@return the same as a Markdown page} */
  public String markdown() {
    StringBuilder s =
        new StringBuilder(
            "Expert parallel on "
                + ranks
                + " GPUs, bf16, recorded; T of all ranks together, microseconds. Empty: of tokens"
                + " without experts. Gather and scatter: NCCL's alone. Limit: the factor that the"
                + " routing allows, by experts with rows (few tokens) and by rows (many).\n\n"
                + "| shape | T | adapters | one GPU | all | factor | limit | empty | gather | scatter |\n"
                + "|---|---|---|---|---|---|---|---|---|---|\n");
    for (Row r : rows) {
      s.append(
          String.format(
              Locale.ROOT,
              "| %s | %d | %s | %.1f | %.1f | %.2fx | %.2fx %.2fx | %.1f | %.1f | %.1f |%n",
              r.shape,
              r.tokens,
              r.lora.adapters() == 0 ? "" : "rank " + r.lora.rank() + " x " + r.lora.adapters(),
              r.alone,
              r.together,
              r.factor(),
              r.expertsLimit,
              r.rowsLimit,
              r.empty,
              r.gather,
              r.scatter));
    }
    return s.toString();
  }

  /** {@return the same as JSON} */
  public ObjectNode json() {
    ObjectNode root = Json.document("bench.ranks");
    root.put("ranks", ranks);
    ArrayNode all = root.putArray("rows");
    for (Row r : rows) {
      ObjectNode n = all.addObject();
      n.put("shape", r.shape);
      n.put("tokens", r.tokens);
      n.put("adapters", r.lora.adapters());
      n.put("rank", r.lora.rank());
      n.put("one_gpu_us", r.alone);
      n.put("all_us", r.together);
      n.put("factor", r.factor());
      n.put("limit_experts", r.expertsLimit);
      n.put("limit_rows", r.rowsLimit);
      n.put("empty_us", r.empty);
      n.put("gather_us", r.gather);
      n.put("scatter_us", r.scatter);
    }
    return root;
  }
}
