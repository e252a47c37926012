package io.moe4j.backend.cpu.kernel;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import io.moe4j.api.config.Activation;
import io.moe4j.api.tensor.DType;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.SplittableRandom;
import java.util.function.Function;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * Kernels are made for one class of segments; given any other they do the same. Compared with the
 * scalar kernels on allocated memory, which {@link KernelsTest} compares with sums in float64.
 */
class SegmentKindsTest {
  private static final ValueLayout.OfFloat F32 = ValueLayout.JAVA_FLOAT_UNALIGNED;
  private static final double NEAR = 1e-4;
  private static final int BYTES = 1 << 16;
  private static final int K = 67;

  private final Kernels kernels = KernelSelection.kernels();
  private final Kernels scalar = KernelSelection.scalar();
  private final Arena arena = Arena.ofShared();

  @TempDir Path dir;

  enum Kind {
    ALLOCATED,
    MAPPED,
    BYTES,
    FLOATS
  }

  static Stream<Arguments> kinds() {
    return Stream.of(Kind.values())
        .flatMap(matrix ->
            Stream.of(Kind.values())
                .flatMap(rest ->
                    Stream.of(DType.F32, DType.BF16, DType.F16)
                        .map(d -> Arguments.of(matrix, rest, d))));
  }

  /** Small numbers, whatever dtype they are read as, from the same seed: the same numbers. */
  private MemorySegment fill(MemorySegment s, DType dtype, long seed) {
    SplittableRandom random = new SplittableRandom(seed);
    int e = dtype.bits() / 8;
    for (int i = 0; i < 4000; i++) {
      float v = (float) random.nextDouble(-1, 1);
      if (dtype == DType.F32) {
        s.set(F32, 4L * i, v);
      } else {
        short half =
            dtype == DType.BF16
                ? (short) (Float.floatToRawIntBits(v) >>> 16)
                : Float.floatToFloat16(v);
        s.set(ValueLayout.JAVA_SHORT_UNALIGNED, (long) e * i, half);
      }
    }
    return s;
  }

  private MemorySegment memory(Kind kind, DType dtype, long seed) throws IOException {
    return fill(room(kind), dtype, seed);
  }

  private MemorySegment room(Kind kind) throws IOException {
    return switch (kind) {
      case ALLOCATED -> arena.allocate(BYTES, 64);
      case BYTES -> MemorySegment.ofArray(new byte[BYTES]);
      case FLOATS -> MemorySegment.ofArray(new float[BYTES / 4]);
      case MAPPED -> {
        Path file = Files.createTempFile(dir, "m", ".bin");
        try (FileChannel c =
            FileChannel.open(file, StandardOpenOption.READ, StandardOpenOption.WRITE)) {
          yield c.map(FileChannel.MapMode.READ_WRITE, 0, BYTES, arena);
        }
      }
    };
  }

  /** What some kernels do, once with all memory of the kinds, once scalar with allocated memory. */
  private void same(Kind rest, Function<Kernels, Function<MemorySegment, Runnable>> work)
      throws IOException {
    MemorySegment actual = memory(rest, DType.F32, 9);
    MemorySegment expected = memory(Kind.ALLOCATED, DType.F32, 9);
    work.apply(kernels).apply(actual).run();
    work.apply(scalar).apply(expected).run();
    for (int i = 0; i < 4000; i++) {
      assertThat(actual.get(F32, 4L * i))
          .as("float %d", i)
          .isCloseTo(expected.get(F32, 4L * i), within((float) NEAR));
    }
  }

  @ParameterizedTest(name = "{2} matrix {0}, rest {1}")
  @MethodSource("kinds")
  void products(Kind matrix, Kind rest, DType dtype) throws IOException {
    MemorySegment w = memory(matrix, dtype, 1);
    MemorySegment x = memory(rest, DType.F32, 2);
    long[] at = {0, 4L * K, 400, 800, 1200, 1600};
    float[] scratch = new float[TypedKernels.DOT_SCRATCH];
    long stride = dtype.byteSize(K);
    for (int tokens = 1; tokens <= TypedKernels.MAX_TOKENS; tokens++) {
      int t = tokens;
      for (MemorySegment chosenFor : new MemorySegment[] {w, MemorySegment.NULL}) {
        same(
            rest,
            k ->
                out ->
                    () ->
                        k.forType(dtype, chosenFor)
                            .dot(w, 0, stride, 5, x, at, t, K, out, 4, 40, scratch));
      }
    }
  }

  @ParameterizedTest(name = "{2} matrix {0}, rest {1}")
  @MethodSource("kinds")
  void sumsAndWidening(Kind matrix, Kind rest, DType dtype) throws IOException {
    MemorySegment src = memory(matrix, dtype, 1);
    same(rest, k -> out -> () -> k.forType(dtype, src).axpy(0.5f, src, 2, out, 4, K));
    same(rest, k -> out -> () -> k.forType(dtype).axpy(0.5f, src, 0, out, 4, K));
    same(rest, k -> out -> () -> k.forType(dtype, src).widen(src, 0, out, 4, K, 3f));
    float[] widened = new float[K + 1];
    float[] expected = new float[K + 1];
    kernels.forType(dtype, src).widen(src, 0, widened, 1, K);
    scalar.forType(dtype).widen(src, 0, expected, 1, K);
    assertThat(widened).isEqualTo(expected);
  }

  @ParameterizedTest(name = "{2} matrix {0}, rest {1}")
  @MethodSource("kinds")
  void expands(Kind matrix, Kind rest, DType dtype) throws IOException {
    MemorySegment b = memory(matrix, dtype, 1);
    MemorySegment s = memory(rest, DType.F32, 2);
    long e = dtype.byteSize(1);
    long[] at = {4, 4 * 300, 4 * 600};
    for (int rank : new int[] {5, kernels.lanes()}) {
      for (boolean add : new boolean[] {true, false}) {
        same(
            rest,
            k ->
                out ->
                    () ->
                        k.expandOf(dtype, b)
                            .expand(b, 0, e, e * K, K, rank, s, 0, 80, out, at, 3, add));
        same(
            rest,
            k ->
                out ->
                    () ->
                        k.expandOf(dtype, b)
                            .expand(b, 0, e * rank, e, K, rank, s, 0, 80, out, at, 3, add));
      }
    }
  }

  @ParameterizedTest(name = "{2} matrix {0}, rest {1}")
  @MethodSource("kinds")
  void activations(Kind matrix, Kind rest, DType dtype) throws IOException {
    MemorySegment gate = memory(matrix, DType.F32, 1);
    for (Activation.Kind kind : Activation.Kind.values()) {
      Activation a = Activation.plain(kind);
      same(rest, k -> out -> () -> k.activate(a, gate, 4, out, 0, out, 800, K));
    }
  }

  @ParameterizedTest(name = "panel {0}, rest {1}, {2}")
  @MethodSource("kinds")
  void panels(Kind matrix, Kind rest, DType dtype) throws IOException {
    int lanes = kernels.lanes();
    MemorySegment x = memory(matrix, DType.F32, 1);
    float[] w = new float[Kernels.PANEL_ROWS * Kernels.PANEL_STRIDE];
    SplittableRandom random = new SplittableRandom(5);
    for (int i = 0; i < w.length; i++) {
      w[i] = (float) random.nextDouble(-1, 1);
    }
    for (int vectors = 1; vectors <= kernels.panelVectors(); vectors *= 2) {
      int width = vectors * lanes;
      float[] c = new float[Kernels.PANEL_ROWS * width];
      float[] expected = c.clone();
      int k = Math.min(K, 4000 / width);
      kernels.panel(w, 0, x, 0, vectors, k, c, 0);
      scalar.panel(w, 0, x, 0, width, k, expected, 0);
      for (int i = 0; i < c.length; i++) {
        assertThat(c[i]).isCloseTo(expected[i], within((float) NEAR));
      }
    }
    float[] block = new float[lanes * lanes];
    MemorySegment turned = memory(rest, DType.F32, 4);
    kernels.transpose(x, 0, 4L * lanes, block, turned, 0, 4L * lanes, 0, 6, lanes);
    MemorySegment out = memory(rest, DType.F32, 3);
    for (int i = 0; i < block.length; i++) {
      block[i] = x.get(F32, 4L * i);
    }
    kernels.transpose(block, 0, lanes, out, 0, 4L * lanes, lanes, lanes);
    for (int i = 0; i < lanes; i++) {
      for (int j = 0; j < lanes; j++) {
        float v = x.get(F32, 4L * (i * lanes + j));
        assertThat(out.get(F32, 4L * (j * lanes + i))).isEqualTo(v);
        assertThat(turned.get(F32, 4L * (j * lanes + i))).isEqualTo(v);
      }
    }
  }

  @AfterEach
  void close() {
    arena.close();
  }
}
