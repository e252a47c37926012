package io.moe4j.backend.cpu;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.backend.cpu.CpuExpertsTest.Path;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.channels.FileChannel;
import java.nio.channels.FileChannel.MapMode;
import java.nio.file.Files;
import java.nio.file.StandardOpenOption;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.ConcurrentHashMap;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

/** The product of router, latent projections and a shared expert's gate, on every path. */
class DenseLayerTest {
  private static final List<DType> TYPES = List.of(DType.F32, DType.BF16, DType.F16);

  /** Bytes in front of and behind what is written. */
  private static final int GUARD = 64;

  private static final byte UNTOUCHED = 0x5a;

  private final Random rnd = new Random(3);

  @TempDir private java.nio.file.Path temp;

  /** By size: a team for each layer would leave thousands of threads to the classes behind. */
  private static final Map<Integer, ThreadTeam> TEAMS = new ConcurrentHashMap<>();

  static Stream<Path> paths() {
    return Path.here().stream();
  }

  static Stream<Arguments> types() {
    return paths()
        .flatMap(p -> TYPES.stream().flatMap(x -> TYPES.stream().map(w -> Arguments.of(p, x, w))));
  }

  private static DenseLayer layer(
      Tensor w, @Nullable Tensor bias, Arena arena, Path path, int threads) {
    ThreadTeam team = TEAMS.computeIfAbsent(threads, ThreadTeam::new);
    return new DenseLayer(w, bias, arena, path.with(team).block(), null, 0, 0);
  }

  /** The rows of y; fails if anything beside them was written. */
  private static float[] run(DenseLayer d, Tensor x, Arena arena) {
    int tokens = (int) x.size(0);
    long bytes = 4L * tokens * d.out();
    MemorySegment y = arena.allocate(GUARD + bytes + GUARD).fill(UNTOUCHED);
    MemorySegment ws = arena.allocate(Math.max(64, d.workspaceBytes(tokens)), 64);
    d.run(x.segment(), x.dtype(), tokens, null, y, GUARD, ws, 0);
    for (int i = 0; i < GUARD; i++) {
      assertThat(y.get(ValueLayout.JAVA_BYTE, i)).isEqualTo(UNTOUCHED);
      assertThat(y.get(ValueLayout.JAVA_BYTE, GUARD + bytes + i)).isEqualTo(UNTOUCHED);
    }
    return y.asSlice(GUARD, bytes).toArray(ValueLayout.JAVA_FLOAT);
  }

  private static double[] exact(Tensor x, Tensor w, @Nullable Tensor bias) {
    int tokens = (int) x.size(0);
    int out = (int) w.size(0);
    double[] y = new double[tokens * out];
    for (int t = 0; t < tokens; t++) {
      for (int o = 0; o < out; o++) {
        double sum = bias == null ? 0 : bias.get(o);
        for (int i = 0; i < x.size(1); i++) {
          sum += x.get(t, i) * w.get(o, i);
        }
        y[t * out + o] = sum;
      }
    }
    return y;
  }

  private static double[] doubles(float[] f) {
    double[] d = new double[f.length];
    for (int i = 0; i < f.length; i++) {
      d[i] = f[i];
    }
    return d;
  }

  @ParameterizedTest
  @MethodSource("types")
  void isTheProductWithAnyNumberOfThreads(Path path, DType xType, DType wType) {
    for (int in : new int[] {7, 130}) {
      for (int out : new int[] {1, 9, 70}) {
        for (int tokens : new int[] {1, 2, 5, 67}) {
          try (Arena arena = Arena.ofShared()) {
            Tensor x = Samples.random(rnd, arena, xType, 1, tokens, in);
            Tensor w = Samples.random(rnd, arena, wType, 0.3, out, in);
            Tensor bias = tokens == 2 ? null : Samples.random(rnd, arena, wType, 0.3, out);
            float[] y = run(layer(w, bias, arena, path, 1), x, arena);
            assertThat(Samples.relativeL2(exact(x, w, bias), doubles(y))).isLessThan(1e-5);
            assertThat(run(layer(w, bias, arena, path, 2), x, arena)).isEqualTo(y);
            assertThat(run(layer(w, bias, arena, path, 5), x, arena)).isEqualTo(y);
          }
        }
      }
    }
  }

  @ParameterizedTest
  @MethodSource("types")
  void aTokensBitsDoNotDependOnTheOthers(Path path, DType xType, DType wType) {
    assumeTrue(path != Path.VECTOR && path != Path.SCALAR, "kernels in Java");
    try (Arena arena = Arena.ofShared()) {
      int tokens = 71;
      int in = 333;
      int out = 37;
      Tensor x = Samples.random(rnd, arena, xType, 1, tokens, in);
      DenseLayer d = layer(Samples.random(rnd, arena, wType, 0.3, out, in), null, arena, path, 3);
      float[] all = run(d, x, arena);
      for (int n : new int[] {1, 2, 3, 4, 7, 33, 64}) {
        for (int from = 0; from + n <= tokens; from += n) {
          float[] some = run(d, x.narrow(0, from, n), arena);
          for (int i = 0; i < some.length; i++) {
            assertThat(some[i]).isEqualTo(all[from * out + i]);
          }
        }
      }
    }
  }

  /** Rows of a larger matrix, and one that lies transposed. */
  @ParameterizedTest
  @MethodSource("paths")
  void weightsMayLieApart(Path path) {
    try (Arena arena = Arena.ofShared()) {
      Tensor x = Samples.random(rnd, arena, DType.BF16, 1, 6, 40);
      for (Tensor w :
          List.of(
              Samples.random(rnd, arena, DType.BF16, 0.3, 20, 55).narrow(1, 0, 40),
              Samples.random(rnd, arena, DType.BF16, 0.3, 40, 20).transpose(0, 1))) {
        assertThat(
                Samples.relativeL2(
                    exact(x, w, null), doubles(run(layer(w, null, arena, path, 2), x, arena))))
            .isLessThan(1e-5);
      }
    }
  }

  @ParameterizedTest
  @MethodSource("paths")
  void memoryMayBeOnTheHeapOrAFiles(Path path) throws Exception {
    java.nio.file.Path file = Files.write(temp.resolve("y"), new byte[4 * 5 * 6]);
    try (Arena arena = Arena.ofShared();
        FileChannel channel =
            FileChannel.open(file, StandardOpenOption.READ, StandardOpenOption.WRITE)) {
      Tensor x = Samples.random(rnd, arena, DType.F32, 1, 5, 24);
      Tensor w = Samples.random(rnd, arena, DType.F32, 0.3, 6, 24);
      DenseLayer d =
          layer(heap(w), heap(Samples.random(rnd, arena, DType.F32, 0, 6)), arena, path, 2);
      double[] expected = exact(x, w, null);
      MemorySegment ws = arena.allocate(d.workspaceBytes(5), 64);
      float[] y = new float[5 * 6];
      d.run(heap(x).segment(), DType.F32, 5, null, MemorySegment.ofArray(y), 0, ws, 0);
      assertThat(Samples.relativeL2(expected, doubles(y))).isLessThan(1e-5);
      MemorySegment mapped = channel.map(MapMode.READ_WRITE, 0, 4 * 5 * 6, arena);
      d.run(x.segment(), DType.F32, 5, null, mapped, 0, ws, 0);
      assertThat(Samples.relativeL2(expected, doubles(mapped.toArray(ValueLayout.JAVA_FLOAT))))
          .isLessThan(1e-5);
    }
  }

  private static Tensor heap(Tensor t) {
    return Tensor.of(DType.F32, new HostMemory(MemorySegment.ofArray(t.toFloats())), t.shape());
  }

  /** Before anything is read or written. */
  @ParameterizedTest
  @MethodSource("paths")
  void whatIsTooShortIsRefused(Path path) {
    assumeTrue(path != Path.VECTOR && path != Path.SCALAR, "kernels in Java check every access");
    try (Arena arena = Arena.ofShared()) {
      DenseLayer d =
          layer(Samples.random(rnd, arena, DType.BF16, 0.3, 6, 24), null, arena, path, 2);
      MemorySegment ws = arena.allocate(d.workspaceBytes(5), 64);
      MemorySegment x = Samples.random(rnd, arena, DType.BF16, 1, 5, 24).segment();
      MemorySegment y = arena.allocate(4 * 5 * 6).fill(UNTOUCHED);
      MemorySegment less = x.asSlice(0, x.byteSize() - 1);
      assertThatThrownBy(() -> d.run(less, DType.BF16, 5, null, y, 0, ws, 0))
          .isInstanceOf(IndexOutOfBoundsException.class);
      assertThatThrownBy(() -> d.run(x, DType.BF16, 5, null, y, 4, ws, 0))
          .isInstanceOf(IndexOutOfBoundsException.class);
      assertThatThrownBy(() -> d.run(x, DType.F32, 5, null, y, 0, ws, 0))
          .isInstanceOf(IndexOutOfBoundsException.class);
      assertThat(y.toArray(ValueLayout.JAVA_BYTE)).containsOnly(UNTOUCHED);
    }
  }
}
