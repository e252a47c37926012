package io.moe4j.benchmarks.cuda;

import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaDeviceProvider;
import io.moe4j.cuda.CudaEvent;
import io.moe4j.cuda.CudaGraph;
import io.moe4j.cuda.DeviceBuffer;
import io.moe4j.lora.cuda.CudaPunicaWrapper;
import io.moe4j.lora.cuda.LoraPath;
import io.moe4j.lora.cuda.TwoStreams;
import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.EnumMap;
import java.util.HashSet;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.SplittableRandom;
import org.jspecify.annotations.Nullable;

/**
 * Microseconds of both deltas of a layer (sort, w13, w2), by path: medians of graph replays, bf16,
 * tokens spread evenly over adapters and at random over experts; routings and adapters rotate, so
 * that factors come from memory. The floor is what must be read and written over 4.3 TB/s.
 *
 * <pre>
 * java -cp ... io.moe4j.benchmarks.cuda.LoraBenchmark [--tokens 1,64] [--ranks 16] [--adapters 8] [--shapes qwen3-30b-a3b]
 *     [--paths auto,one-shot] [--budget budget-h200.csv] [--json FILE]
 * </pre>
 *
 * <p>A budget file has lines {@code shape,T,rank,adapters,peer_us,base_us}: the fastest peer's time
 * of a layer with LoRA and our own of the same layer without. What lies between is what both deltas
 * may take; the table and the JSON rows of {@code auto} then say whether they do.
 */
public final class LoraBenchmark {
  private static final double BYTES_PER_MICRO = 4.3e6;
  private static final int POOL = 32;
  private static final int REPLAYS = 11;
  private static final long NOISE_BYTES = 64L << 20;
  private static final double ROTATED_BYTES = 150e6;
  private static final String TWO_STREAMS = "two-streams";
  private static final String ALL_WAYS = "auto,one-shot,small-batch,two-kernels," + TWO_STREAMS;

  private record Shape(String name, int experts, int topK, int hidden, int inter) {}

  private static final List<Shape> SHAPES =
      List.of(
          new Shape("qwen3-30b-a3b", 128, 8, 2048, 768),
          new Shape("gpt-oss-120b-like", 128, 4, 2880, 2880),
          new Shape("mixtral-8x7b", 8, 2, 4096, 14336));

  private record Slots(List<@Nullable LoraLayer> layers, Tensor tokenLoraMapping, PunicaWrapper own)
      implements MoeLoraContext {
    @Override
    public int maxLoras() {
      return layers.size();
    }

    @Override
    public boolean hasLora() {
      return true;
    }

    @Override
    public @Nullable LoraLayer slot(int slot) {
      return layers.get(slot);
    }

    @Override
    public PunicaWrapper punicaWrapper() {
      return own;
    }

    @Override
    public MoeLoraContext withTokenLoraMapping(Tensor mapping) {
      return new Slots(layers, mapping, own);
    }
  }

  /** One layer's tensors of one size. */
  private record Inputs(
      List<MoeLoraContext> contexts,
      List<ExpertRouting> routings,
      Tensor x,
      Tensor act,
      Tensor y13,
      Tensor y2,
      Tensor delta,
      double floor) {}

  /** A point of the grid. */
  private record Point(String shape, int tokens, int rank, int adapters) {}

  private final CudaDevice device;
  private final MemorySegment noise;
  private final Map<Point, Double> budgets;
  private final List<LoraPath> paths;
  private final boolean twoStreams;
  private final List<String> json = new ArrayList<>();
  private int within;
  private int over;
  private final List<DeviceBuffer> owned = new ArrayList<>();

  private LoraBenchmark(CudaDevice device, Map<Point, Double> budgets, List<String> ways) {
    this.device = device;
    this.budgets = budgets;
    this.paths =
        Arrays.stream(LoraPath.values())
            .filter(p -> p != LoraPath.GENERAL && ways.contains(p.text()))
            .toList();
    this.twoStreams = ways.contains(TWO_STREAMS);
    byte[] bytes = new byte[(int) NOISE_BYTES];
    SplittableRandom rng = new SplittableRandom(1);
    for (int i = 0; i < bytes.length; i += 2) {
      short v = Tensor.toBFloat16((float) (rng.nextDouble() * 0.1 - 0.05));
      bytes[i] = (byte) v;
      bytes[i + 1] = (byte) (v >> 8);
    }
    this.noise = MemorySegment.ofArray(bytes);
  }

  /**
   * Runs it.
   *
   * @param args see the class
   * @throws IOException if the JSON file cannot be written
   */
  @SuppressWarnings("SystemOut") // a command
  public static void main(String[] args) throws IOException {
    Map<String, String> options = new java.util.HashMap<>();
    for (int i = 0; i + 1 < args.length; i += 2) {
      options.put(args[i], args[i + 1]);
    }
    var probe = new CudaDeviceProvider().probe();
    if (probe.devices().isEmpty()) {
      System.out.println("no CUDA device: " + probe.absent());
      return;
    }
    String budget = options.get("--budget");
    try (CudaDevice device = new CudaDeviceProvider().open(0)) {
      System.out.println(device + ", bf16, both deltas of a layer and the sort, microseconds");
      LoraBenchmark bench =
          new LoraBenchmark(
              device,
              budget == null ? Map.of() : budgets(Path.of(budget)),
              List.of(options.getOrDefault("--paths", ALL_WAYS).split(",", -1)));
      StringBuilder head = new StringBuilder();
      bench.paths.forEach(p -> head.append(String.format("%12s", p.text())));
      System.out.printf(
          "%-18s %5s %4s %3s %8s %8s%s%s%n",
          "shape",
          "T",
          "rank",
          "n",
          "floor",
          "budget",
          head,
          bench.twoStreams ? "  " + TWO_STREAMS : "");
      for (Shape shape : SHAPES) {
        if (options.getOrDefault("--shapes", shape.name).contains(shape.name)) {
          for (int rank : numbers(options.getOrDefault("--ranks", "16,64"))) {
            bench.run(
                shape,
                rank,
                numbers(options.getOrDefault("--tokens", "1,4,16,64,256,1024,4096,8192")),
                numbers(options.getOrDefault("--adapters", "1,8,32")));
          }
        }
      }
      if (bench.within + bench.over > 0) {
        System.out.printf(
            "%d of %d points over their budget%n", bench.over, bench.within + bench.over);
      }
      String file = options.get("--json");
      if (file != null) {
        Files.writeString(Path.of(file), String.join("\n", bench.json) + "\n");
      }
    }
  }

  /** What both deltas of each point may take. */
  private static Map<Point, Double> budgets(Path file) throws IOException {
    Map<Point, Double> budgets = new java.util.HashMap<>();
    for (String line : Files.readAllLines(file)) {
      String[] f = line.split(",", -1);
      if (f.length != 6) {
        throw new IllegalArgumentException(
            file + " has the line \"" + line + "\", must be shape,T,rank,adapters,peer_us,base_us");
      }
      if (!f[0].equals("shape")) {
        budgets.put(
            new Point(f[0], Integer.parseInt(f[1]), Integer.parseInt(f[2]), Integer.parseInt(f[3])),
            Double.parseDouble(f[4]) - Double.parseDouble(f[5]));
      }
    }
    return budgets;
  }

  private static int[] numbers(String list) {
    return Arrays.stream(list.split(",", -1)).mapToInt(Integer::parseInt).toArray();
  }

  @SuppressWarnings("SystemOut")
  private void run(Shape shape, int rank, int[] tokens, int[] adapters) {
    List<LoraLayer> pool = new ArrayList<>();
    for (int i = 0; i < POOL; i++) {
      pool.add(adapter(shape, rank));
    }
    int permanent = owned.size();
    for (int t : tokens) {
      for (int n : adapters) {
        Inputs in = inputs(shape, rank, t, n, pool);
        Point point = new Point(shape.name, t, rank, n);
        Double budget = budgets.get(point);
        StringBuilder line = new StringBuilder();
        String verdict = "";
        for (LoraPath path : paths) {
          boolean hopeless = path == LoraPath.SMALL_BATCH && t > 256;
          double us = hopeless ? Double.NaN : time(in, path, false);
          Double limit = path == LoraPath.AUTO ? budget : null;
          if (limit != null) {
            verdict = us <= limit ? "" : String.format(Locale.ROOT, "  over by %.1f", us - limit);
            within += us <= limit ? 1 : 0;
            over += us <= limit ? 0 : 1;
          }
          report(line, point, us, in.floor, path.text(), limit);
        }
        if (twoStreams) {
          report(line, point, time(in, LoraPath.AUTO, true), in.floor, TWO_STREAMS, null);
        }
        System.out.printf(
            Locale.ROOT,
            "%-18s %5d %4d %3d %8.1f %8s%s%s%n",
            shape.name,
            t,
            rank,
            n,
            in.floor,
            budget == null ? "-" : String.format(Locale.ROOT, "%.1f", budget),
            line,
            verdict);
        release(permanent);
      }
    }
    release(0);
  }

  private void report(
      StringBuilder line,
      Point point,
      double us,
      double floor,
      String path,
      @Nullable Double budget) {
    line.append(
        Double.isNaN(us) ? String.format("%12s", "-") : String.format(Locale.ROOT, "%12.1f", us));
    if (Double.isNaN(us)) {
      return;
    }
    String row =
        String.format(
            Locale.ROOT,
            "{\"shape\": \"%s\", \"T\": %d, \"rank\": %d, \"adapters\": %d, \"us\": %.2f,"
                + " \"floor_us\": %.2f, \"path\": \"%s\"",
            point.shape,
            point.tokens,
            point.rank,
            point.adapters,
            us,
            floor,
            path);
    if (budget != null) {
      row +=
          String.format(Locale.ROOT, ", \"budget_us\": %.2f, \"within\": %b", budget, us <= budget);
    }
    json.add(row + "}");
  }

  private void release(int keep) {
    while (owned.size() > keep) {
      owned.removeLast().close();
    }
  }

  private Tensor random(long... dims) {
    long elements = Arrays.stream(dims).reduce(1, (a, b) -> a * b);
    DeviceBuffer buffer = device.allocate(2 * elements);
    owned.add(buffer);
    DeviceStream stream = device.defaultStream();
    Tensor all = buffer.tensor(DType.BF16, elements);
    long block = NOISE_BYTES / 2;
    long first = Math.min(block, elements);
    device.copy(
        Tensor.of(DType.BF16, noise.asSlice(0, 2 * first), first), all.narrow(0, 0, first), stream);
    for (long at = first; at < elements; at += first) {
      long n = Math.min(first, elements - at);
      device.copy(all.narrow(0, 0, n), all.narrow(0, at, n), stream);
    }
    return buffer.tensor(DType.BF16, dims);
  }

  private Tensor ints(int[] values, long... dims) {
    DeviceBuffer buffer = device.allocate(4L * values.length);
    owned.add(buffer);
    Tensor t = buffer.tensor(DType.I32, dims);
    device.copy(Tensor.ofInts(values, dims), t, device.defaultStream());
    return t;
  }

  private LoraLayer adapter(Shape s, int rank) {
    Map<LoraTarget, LoraFactors> f = new EnumMap<>(LoraTarget.class);
    for (LoraTarget t : List.of(LoraTarget.GATE, LoraTarget.UP, LoraTarget.DOWN)) {
      int in = t == LoraTarget.DOWN ? s.inter : s.hidden;
      int out = t == LoraTarget.DOWN ? s.hidden : s.inter;
      f.put(t, new LoraFactors(random(s.experts, rank, in), random(s.experts, out, rank)));
    }
    return new LoraLayer(f);
  }

  private Inputs inputs(Shape s, int rank, int tokens, int adapters, List<LoraLayer> pool) {
    int pairs = tokens * s.topK;
    double factorBytes =
        Math.min(pairs, (double) s.experts * adapters) * 6.0 * rank * (s.hidden + s.inter);
    int rotate = tokens > 64 ? 1 : (int) Math.clamp(ROTATED_BYTES / factorBytes, 1, 8);
    SplittableRandom rng = new SplittableRandom(tokens);
    List<MoeLoraContext> contexts = new ArrayList<>();
    List<ExpertRouting> routings = new ArrayList<>();
    DeviceBuffer weights = device.allocate(4L * pairs);
    owned.add(weights);
    long touched = 0;
    try (CudaPunicaWrapper nobody = new CudaPunicaWrapper(device)) {
      for (int i = 0; i < rotate; i++) {
        int[] ids = new int[pairs];
        int[] mapping = new int[tokens];
        int[] order = new int[s.experts];
        Arrays.setAll(order, e -> e);
        Set<Integer> segments = new HashSet<>();
        for (int t = 0; t < tokens; t++) {
          mapping[t] = (t + i) % adapters;
          for (int k = 0; k < s.topK; k++) {
            int other = k + rng.nextInt(s.experts - k);
            int chosen = order[other];
            order[other] = order[k];
            order[k] = chosen;
            ids[t * s.topK + k] = chosen;
            segments.add(chosen * POOL + mapping[t]);
          }
        }
        touched += segments.size();
        List<@Nullable LoraLayer> slots = new ArrayList<>();
        for (int a = 0; a < adapters; a++) {
          slots.add(pool.get((a + i * adapters) % POOL));
        }
        contexts.add(new Slots(slots, ints(mapping, tokens), nobody));
        routings.add(
            new ExpertRouting(
                ints(ids, tokens, s.topK), weights.tensor(DType.F32, tokens, s.topK), null));
      }
    }
    double bytes =
        (double) touched / rotate * 6.0 * rank * (s.hidden + s.inter)
            + 4.0 * pairs * (2.0 * s.inter + s.hidden)
            + 2.0 * ((double) tokens * s.hidden + (double) pairs * s.inter);
    long widest = Math.max(2L * s.inter, s.hidden);
    return new Inputs(
        contexts,
        routings,
        random(tokens, s.hidden),
        random(pairs, s.inter),
        random(tokens, s.topK, 2L * s.inter),
        random(tokens, s.topK, s.hidden),
        random(pairs * widest),
        bytes / BYTES_PER_MICRO);
  }

  private double time(Inputs in, LoraPath path, boolean twoStreams) {
    try (CudaPunicaWrapper wrapper = new CudaPunicaWrapper(device, path);
        TwoStreams two = new TwoStreams(device, wrapper)) {
      Runnable all =
          () -> {
            for (int i = 0; i < in.contexts.size(); i++) {
              layer(in, i, wrapper, twoStreams ? two : null);
            }
          };
      all.run();
      device.defaultStream().synchronize();
      double[] micros = new double[REPLAYS];
      try (CudaGraph graph = CudaGraph.capture(device, device.defaultStream(), all);
          CudaEvent begin = device.newEvent(true);
          CudaEvent end = device.newEvent(true)) {
        for (int i = -2; i < REPLAYS; i++) {
          begin.record(device.defaultStream());
          graph.launch(device.defaultStream());
          end.record(device.defaultStream());
          end.synchronize();
          if (i >= 0) {
            micros[i] = end.microsSince(begin) / in.contexts.size();
          }
        }
      }
      Arrays.sort(micros);
      return micros[REPLAYS / 2];
    }
  }

  private void layer(Inputs in, int i, CudaPunicaWrapper wrapper, @Nullable TwoStreams two) {
    MoeLoraContext context = in.contexts.get(i);
    ExpertRouting routing = in.routings.get(i);
    var stream = device.defaultStream();
    if (two == null) {
      wrapper.addLoraW13(
          PunicaWrapper.W13.of(context, in.y13, in.x, routing, true, GateUpLayout.HALVES), stream);
      wrapper.addLoraW2(PunicaWrapper.W2.of(context, in.y2, in.act, routing), stream);
    } else {
      Tensor d13 = part(in.delta, in.y13);
      Tensor d2 = part(in.delta, in.y2);
      two.w13(s -> {}, context, in.y13, d13, in.x, routing, true, GateUpLayout.HALVES, stream);
      two.w2(s -> {}, context, in.y2, d2, in.act, routing, false, stream);
    }
  }

  private static Tensor part(Tensor scratch, Tensor like) {
    return Tensor.of(DType.BF16, (DeviceMemory) scratch.memory(), like.shape());
  }
}
