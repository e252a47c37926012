package io.moe4j.integration;

import io.moe4j.api.MoeException;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.RouterWeights;
import io.moe4j.api.weights.SharedExpertWeights;
import io.moe4j.api.weights.Weight;
import io.moe4j.checkpoint.MoeCheckpoint;
import io.moe4j.oracle.MoeForward;
import io.moe4j.oracle.MoeLayer;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;

/** See {@link TruncatedFileTest}. Arguments: a checkpoint, a folder to work in. */
final class TruncatedFileMain {
  private static final int TOKENS = 6;
  private static final int RANK = 4;

  /** Kernels are compiled after some thousands of calls; this is a good part more. */
  private static final int WARM_FORWARDS = 3000;

  private final Path source;
  private final Path work;
  private final MoeConfig config;
  private final int layer;
  private final Tensor in;
  private final float[] expected;

  private TruncatedFileMain(Path source, Path work) {
    this.source = source;
    this.work = work;
    try (MoeCheckpoint model = MoeCheckpoint.open(source)) {
      layer = model.layers().getLast();
      config = model.config(layer).toBuilder().maxTokens(TOKENS).build();
      float[] x = new float[TOKENS * config.hiddenSize()];
      SplittableRandom rng = new SplittableRandom(5);
      for (int i = 0; i < x.length; i++) {
        x[i] = (float) (rng.nextDouble() * 2 - 1);
      }
      in = Tensor.ofFloats(x, TOKENS, config.hiddenSize());
      try (MoeLayer built = MoeLayer.builder(config, model.weights(layer)).backend("cpu").build()) {
        expected = forward(built);
      }
    }
  }

  public static void main(String[] args) throws Exception {
    TruncatedFileMain main = new TruncatedFileMain(Path.of(args[0]), Path.of(args[1]));
    main.withoutGuard();
    main.underWay();
    main.inTheMiddleOfAPage();
    main.copied();
    main.renamed();
    main.builtOver();
    main.mappedByTheCaller();
    main.another();
  }

  private float[] forward(MoeLayer built) {
    float[] y = new float[TOKENS * config.hiddenSize()];
    built.forward(in, Tensor.ofFloats(y, TOKENS, config.hiddenSize()));
    return y;
  }

  private void warm(MoeLayer built) {
    for (int i = 0; i < WARM_FORWARDS; i++) {
      float[] y = forward(built);
      if (!Arrays.equals(y, expected)) {
        throw new IllegalStateException("another result while nothing has happened");
      }
    }
  }

  private void say(String what, MoeLayer built) {
    String seen;
    try {
      seen = Arrays.equals(forward(built), expected) ? "right" : "WRONG";
    } catch (MoeException e) {
      seen = e.getClass().getSimpleName();
    }
    System.out.println(what + ": " + seen);
  }

  /** The kernels themselves: the weights do not say that they come from a file. */
  private void withoutGuard() throws IOException {
    Path files = fresh("without-guard");
    try (MoeCheckpoint model = MoeCheckpoint.open(files);
        MoeLayer built =
            MoeLayer.builder(config, anonymous(model.weights(layer))).backend("cpu").build()) {
      warm(built);
      truncate(files, 4096);
      for (int i = 0; i < 50; i++) {
        try {
          forward(built);
        } catch (MoeException e) {
          // what is looked for is that the process goes on
        }
      }
      say("without a guard", built);
    }
  }

  /** While forwards run, on several threads. */
  private void underWay() throws Exception {
    Path files = fresh("under-way");
    try (MoeCheckpoint model = MoeCheckpoint.open(files);
        MoeLayer built = MoeLayer.builder(config, model.weights(layer)).backend("cpu").build()) {
      warm(built);
      AtomicBoolean wrong = new AtomicBoolean();
      Thread[] threads = new Thread[3];
      for (int i = 0; i < threads.length; i++) {
        threads[i] =
            Thread.ofPlatform()
                .start(() -> {
                  try {
                    while (true) {
                      if (!Arrays.equals(forward(built), expected)) {
                        wrong.set(true);
                      }
                    }
                  } catch (MoeException e) {
                    // the end that is waited for
                  }
                });
      }
      Thread.sleep(300);
      truncate(files, 4096);
      for (Thread t : threads) {
        t.join();
      }
      System.out.println("under way: " + (wrong.get() ? "WRONG" : "CheckpointException"));
      say("afterwards", built);
    }
  }

  /** What is cut off inside a page reads as zeros, without any fault. */
  private void inTheMiddleOfAPage() throws IOException {
    Path files = fresh("middle");
    try (MoeCheckpoint model = MoeCheckpoint.open(files);
        MoeLayer built = MoeLayer.builder(config, model.weights(layer)).backend("cpu").build()) {
      try (Stream<Path> all = Files.list(files)) {
        for (Path p : all.filter(f -> f.toString().endsWith(".safetensors")).toList()) {
          truncate(p, Files.size(p) - 8);
        }
      }
      say("cut in the middle of a page", built);
    }
  }

  private void copied() throws IOException {
    Path files = fresh("copied");
    try (MoeCheckpoint model = MoeCheckpoint.open(files);
        MoeLayer built =
            MoeLayer.builder(config, model.weights(layer)).backend("cpu").copyWeights().build()) {
      truncate(files, 4096);
      say("copied weights", built);
    }
  }

  private void renamed() throws IOException {
    Path files = fresh("renamed");
    try (MoeCheckpoint model = MoeCheckpoint.open(files);
        MoeLayer built = MoeLayer.builder(config, model.weights(layer)).backend("cpu").build()) {
      try (Stream<Path> all = Files.list(files)) {
        for (Path p : all.filter(f -> f.toString().endsWith(".safetensors")).toList()) {
          Path other = Files.writeString(files.resolve("other"), "something else");
          Files.move(other, p, StandardCopyOption.REPLACE_EXISTING);
        }
      }
      say("replaced by a rename", built);
    }
  }

  private void builtOver() throws IOException {
    Path files = fresh("built-over");
    try (MoeCheckpoint model = MoeCheckpoint.open(files)) {
      truncate(files, 4096);
      try {
        MoeLayer.builder(config, model.weights(layer)).backend("cpu").build().close();
        System.out.println("built over it: returned");
      } catch (MoeException e) {
        System.out.println("built over it: " + e.getClass().getSimpleName());
      }
      try {
        MoeLayer.builder(config, unnoticed(model.weights(layer)))
            .backend("cpu")
            .copyWeights()
            .build()
            .close();
        System.out.println("copied over it: returned");
      } catch (MoeException e) {
        System.out.println("copied over it: " + e.getClass().getSimpleName());
      }
    }
  }

  /** Hidden states, results and adapters that the caller has mapped, from a file that is cut. */
  private void mappedByTheCaller() throws IOException {
    MoeConfig withLora = config.toBuilder().lora(new LoraConfig(1, RANK)).build();
    int h = config.hiddenSize();
    int i = config.intermediateSize();
    Path file =
        Files.write(work.resolve("mapped"), new byte[4 * (2 * TOKENS * h + RANK * (h + i))]);
    try (Arena arena = Arena.ofShared();
        FileChannel channel =
            FileChannel.open(file, StandardOpenOption.READ, StandardOpenOption.WRITE);
        MoeCheckpoint model = MoeCheckpoint.open(source);
        MoeLayer built = MoeLayer.builder(withLora, model.weights(layer)).backend("cpu").build()) {
      MemorySegment m = channel.map(FileChannel.MapMode.READ_WRITE, 0, Files.size(file), arena);
      Tensor hidden = mapped(m, 0, TOKENS, h);
      Tensor output = mapped(m, TOKENS * h, TOKENS, h);
      Tensor a = mapped(m, 2 * TOKENS * h, 1, RANK, h);
      Tensor b = mapped(m, 2 * TOKENS * h + RANK * h, 1, i, RANK);
      for (Tensor t : List.of(a, b)) {
        Tensor flat = t.reshape(t.elementCount());
        for (int n = 0; n < t.elementCount(); n++) {
          flat.set((n % 7 - 3) / 8.0, n);
        }
      }
      for (int t = 0; t < TOKENS; t++) {
        for (int j = 0; j < h; j++) {
          hidden.set(in.get(t, j), t, j);
        }
      }
      float[] y = new float[TOKENS * h];
      Tensor out = Tensor.ofFloats(y, TOKENS, h);
      built.forward(MoeForward.of(in, out).withLora(new OneSlot(onHeap(a), onHeap(b))));
      built.forward(MoeForward.of(hidden, output).withLora(new OneSlot(a, b)));
      boolean right = true;
      for (int t = 0; t < TOKENS; t++) {
        for (int j = 0; j < h; j++) {
          right &= output.get(t, j) == out.get(t, j);
        }
      }
      System.out.println("mapped by the caller: " + (right ? "right" : "WRONG"));
      channel.truncate(0);
      for (MoeForward f :
          List.of(
              MoeForward.of(hidden, out),
              MoeForward.of(in, output),
              MoeForward.of(in, out).withLora(new OneSlot(a, b)))) {
        for (int n = 0; n < 20; n++) {
          try {
            built.forward(f);
          } catch (MoeException e) {
            // what is looked for is that the process goes on
          }
        }
      }
      built.forward(MoeForward.of(in, out).withLora(new OneSlot(null, null)));
      System.out.println(
          "without what was mapped: " + (Arrays.equals(y, expected) ? "right" : "WRONG"));
    }
  }

  private static Tensor mapped(MemorySegment m, int from, long... shape) {
    long n = Arrays.stream(shape).reduce(4, (p, q) -> p * q);
    return Tensor.of(DType.F32, new HostMemory(m.asSlice(4L * from, n)), shape);
  }

  private static Tensor onHeap(Tensor t) {
    float[] values = new float[Math.toIntExact(t.elementCount())];
    Tensor flat = t.reshape(values.length);
    for (int n = 0; n < values.length; n++) {
      values[n] = (float) flat.get(n);
    }
    return Tensor.ofFloats(values, t.shape());
  }

  /** One adapter on the up projection for all tokens, or none. */
  private record OneSlot(@Nullable Tensor a, @Nullable Tensor b) implements MoeLoraContext {
    @Override
    public int maxLoras() {
      return 1;
    }

    @Override
    public Tensor tokenLoraMapping() {
      int[] slots = new int[TOKENS];
      Arrays.fill(slots, a == null ? -1 : 0);
      return Tensor.ofInts(slots, TOKENS);
    }

    @Override
    public PunicaWrapper punicaWrapper() {
      throw new UnsupportedOperationException();
    }

    @Override
    public MoeLoraContext withTokenLoraMapping(Tensor mapping) {
      throw new UnsupportedOperationException();
    }

    @Override
    public boolean hasLora() {
      return a != null;
    }

    @Override
    public @Nullable LoraLayer slot(int slot) {
      return a == null || b == null
          ? null
          : new LoraLayer(Map.of(LoraTarget.UP, new LoraFactors(a, b)));
    }
  }

  private void another() {
    try (MoeCheckpoint model = MoeCheckpoint.open(source);
        MoeLayer built = MoeLayer.builder(config, model.weights(layer)).backend("cpu").build()) {
      say("another layer", built);
    }
  }

  private Path fresh(String name) throws IOException {
    Path to = Files.createDirectories(work.resolve(name));
    try (Stream<Path> all = Files.list(source)) {
      for (Path p : all.toList()) {
        Files.copy(p, to.resolve(p.getFileName()), StandardCopyOption.REPLACE_EXISTING);
      }
    }
    return to;
  }

  private static void truncate(Path what, long size) throws IOException {
    try (Stream<Path> all = Files.walk(what)) {
      for (Path p : all.filter(f -> f.toString().endsWith(".safetensors")).toList()) {
        try (FileChannel channel = FileChannel.open(p, StandardOpenOption.WRITE)) {
          channel.truncate(size);
        }
      }
    }
  }

  /** Weights of a file that does not notice what happens to it: the pages are gone all the same. */
  private static MoeLayerWeights unnoticed(MoeLayerWeights w) {
    return new MoeLayerWeights(
        new ExpertWeights(
            w.experts().experts().stream()
                .map(x -> {
                  Weight gate = x.gate();
                  return ExpertWeights.Expert.of(
                      gate == null ? null : gate.withTensors(TruncatedFileMain::unnoticed),
                      x.up().withTensors(TruncatedFileMain::unnoticed),
                      x.down().withTensors(TruncatedFileMain::unnoticed));
                })
                .toList()),
        w.router(),
        w.shared(),
        w.latent());
  }

  private static Tensor unnoticed(Tensor t) {
    return over(t, new HostMemory(((HostMemory) t.memory()).segment(), () -> {}));
  }

  private static MoeLayerWeights anonymous(MoeLayerWeights w) {
    RouterWeights router = w.router();
    SharedExpertWeights shared = w.shared();
    return new MoeLayerWeights(
        new ExpertWeights(
            w.experts().experts().stream().map(TruncatedFileMain::anonymous).toList()),
        router == null
            ? null
            : new RouterWeights(
                plain(router.weight()),
                anonymous(router.bias()),
                anonymous(router.correctionBias())),
        shared == null
            ? null
            : new SharedExpertWeights(anonymous(shared.mlp()), anonymous(shared.sigmoidGate())),
        w.latent());
  }

  private static ExpertWeights.Expert anonymous(ExpertWeights.Expert x) {
    Weight gate = x.gate();
    return ExpertWeights.Expert.of(
            gate == null ? null : gate.withTensors(TruncatedFileMain::plain),
            x.up().withTensors(TruncatedFileMain::plain),
            x.down().withTensors(TruncatedFileMain::plain))
        .withBias(anonymous(x.gateBias()), anonymous(x.upBias()), anonymous(x.downBias()));
  }

  private static @Nullable Tensor anonymous(@Nullable Tensor t) {
    return t == null ? null : plain(t);
  }

  private static Tensor plain(Tensor t) {
    return over(t, new HostMemory(((HostMemory) t.memory()).segment()));
  }

  private static Tensor over(Tensor t, HostMemory memory) {
    long[] strides = new long[t.dims()];
    for (int d = 0; d < strides.length; d++) {
      strides[d] = t.stride(d);
    }
    return Tensor.strided(t.dtype(), memory, t.byteOffset(), t.shape(), strides);
  }
}
