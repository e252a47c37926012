package io.moe4j.lora.cuda;

import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.spi.DeviceStream;
import io.moe4j.api.spi.ExpertRouting;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaDeviceProvider;
import io.moe4j.cuda.CudaEvent;
import io.moe4j.cuda.CudaGraph;
import io.moe4j.cuda.DeviceBuffer;
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
 * java -cp ... io.moe4j.lora.cuda.LoraBenchmark [--tokens 1,64] [--ranks 16] [--adapters 8] [--shapes qwen3-30b-a3b] [--json FILE]
 * </pre>
 */
public final class LoraBenchmark {
  private static final double BYTES_PER_MICRO = 4.3e6;
  private static final int POOL = 32;
  private static final int REPLAYS = 11;
  private static final long NOISE_BYTES = 64L << 20;
  private static final double ROTATED_BYTES = 150e6;

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

  private final CudaDevice device;
  private final MemorySegment noise;
  private final List<DeviceBuffer> owned = new ArrayList<>();

  private LoraBenchmark(CudaDevice device) {
    this.device = device;
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
    List<String> json = new ArrayList<>();
    try (CudaDevice device = new CudaDeviceProvider().open(0)) {
      System.out.println(device + ", bf16, both deltas of a layer and the sort, microseconds");
      System.out.printf(
          Locale.ROOT,
          "%-18s %5s %4s %3s %8s %9s %9s %9s %9s %9s%n",
          "shape",
          "T",
          "rank",
          "n",
          "floor",
          "auto",
          "one-shot",
          "small",
          "two-kern.",
          "2 streams");
      LoraBenchmark bench = new LoraBenchmark(device);
      for (Shape shape : SHAPES) {
        if (options.getOrDefault("--shapes", shape.name).contains(shape.name)) {
          for (int rank : numbers(options.getOrDefault("--ranks", "16,64"))) {
            bench.run(
                shape,
                rank,
                numbers(options.getOrDefault("--tokens", "1,4,16,64,256,1024,4096,8192")),
                numbers(options.getOrDefault("--adapters", "1,8,32")),
                json);
          }
        }
      }
    }
    String file = options.get("--json");
    if (file != null) {
      Files.writeString(Path.of(file), String.join("\n", json) + "\n");
    }
  }

  private static int[] numbers(String list) {
    return Arrays.stream(list.split(",", -1)).mapToInt(Integer::parseInt).toArray();
  }

  @SuppressWarnings("SystemOut")
  private void run(Shape shape, int rank, int[] tokens, int[] adapters, List<String> json) {
    List<LoraLayer> pool = new ArrayList<>();
    for (int i = 0; i < POOL; i++) {
      pool.add(adapter(shape, rank));
    }
    int permanent = owned.size();
    for (int t : tokens) {
      for (int n : adapters) {
        Inputs in = inputs(shape, rank, t, n, pool);
        StringBuilder line = new StringBuilder();
        for (LoraPath path :
            List.of(LoraPath.AUTO, LoraPath.ONE_SHOT, LoraPath.SMALL_BATCH, LoraPath.TWO_KERNELS)) {
          boolean hopeless = path == LoraPath.SMALL_BATCH && t > 256;
          double us = hopeless ? Double.NaN : time(in, path, false);
          report(json, line, shape, rank, t, n, us, in.floor, path.text());
        }
        report(
            json, line, shape, rank, t, n, time(in, LoraPath.AUTO, true), in.floor, "two-streams");
        System.out.printf(
            Locale.ROOT, "%-18s %5d %4d %3d %8.1f%s%n", shape.name, t, rank, n, in.floor, line);
        release(permanent);
      }
    }
    release(0);
  }

  private static void report(
      List<String> json,
      StringBuilder line,
      Shape shape,
      int rank,
      int tokens,
      int adapters,
      double us,
      double floor,
      String path) {
    line.append(
        Double.isNaN(us) ? String.format("%10s", "-") : String.format(Locale.ROOT, "%10.1f", us));
    if (!Double.isNaN(us)) {
      json.add(
          String.format(
              Locale.ROOT,
              "{\"shape\": \"%s\", \"T\": %d, \"rank\": %d, \"adapters\": %d, \"us\": %.2f,"
                  + " \"floor_us\": %.2f, \"path\": \"%s\"}",
              shape.name,
              tokens,
              rank,
              adapters,
              us,
              floor,
              path));
    }
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
      wrapper.addLoraW13(context, in.y13, in.x, routing, true, GateUpLayout.HALVES, true, stream);
      wrapper.addLoraW2(context, in.y2, in.act, routing, false, true, stream);
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
