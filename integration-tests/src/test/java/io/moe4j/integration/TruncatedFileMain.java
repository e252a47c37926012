package io.moe4j.integration;

import io.moe4j.api.MoeException;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.RouterWeights;
import io.moe4j.api.weights.SharedExpertWeights;
import io.moe4j.api.weights.Weight;
import io.moe4j.checkpoint.MoeCheckpoint;
import io.moe4j.oracle.MoeLayer;
import java.io.IOException;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.util.Arrays;
import java.util.SplittableRandom;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;

/** See {@link TruncatedFileTest}. Arguments: a checkpoint, a folder to work in. */
final class TruncatedFileMain {
  private static final int TOKENS = 6;

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
          System.out.println("without a guard: returned");
        } catch (MoeException e) {
          if (i == 49) {
            System.out.println("without a guard: " + e.getClass().getSimpleName());
          }
        }
      }
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
    long[] strides = new long[t.dims()];
    for (int d = 0; d < strides.length; d++) {
      strides[d] = t.stride(d);
    }
    return Tensor.strided(
        t.dtype(),
        new HostMemory(((HostMemory) t.memory()).segment()),
        t.byteOffset(),
        t.shape(),
        strides);
  }
}
