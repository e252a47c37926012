package io.moe4j.backend.cpu.kernel;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.SplittableRandom;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * Products, LoRA expands and transposes, with vectors and without, against sums in float64; guards
 * around what they write. Activations are compared in {@code CpuExpertsTest}.
 */
class KernelsTest {
  private static final ValueLayout.OfFloat F32 = ValueLayout.JAVA_FLOAT_UNALIGNED;
  private static final float GUARD = -12345.5f;

  /** Sums of up to 4100 products of numbers below 1: the rounding of one f32 chain, and no more. */
  private static final double NEAR = 1e-3;

  private final SplittableRandom random = new SplittableRandom(7);
  private final Arena arena = Arena.ofAuto();

  static Stream<Kernels> both() {
    return Stream.of(new ScalarKernels(), KernelSelection.kernels());
  }

  static Stream<Arguments> dots() {
    return both()
        .flatMap(k ->
            Stream.of(DType.F32, DType.BF16, DType.F16)
                .flatMap(d ->
                    IntStream.rangeClosed(1, TypedKernels.MAX_TOKENS)
                        .boxed()
                        .flatMap(t ->
                            Stream.of(1, 15, 64, 130, 2048, 2049, 4100)
                                .map(n -> Arguments.of(k, d, t, n)))));
  }

  private float[] numbers(int n) {
    float[] v = new float[n];
    for (int i = 0; i < n; i++) {
      v[i] = (float) random.nextDouble(-1, 1);
    }
    return v;
  }

  private MemorySegment floats(int n) {
    MemorySegment s = arena.allocate(4L * n, 64);
    for (int i = 0; i < n; i++) {
      s.set(F32, 4L * i, (float) random.nextDouble(-1, 1));
    }
    return s;
  }

  private MemorySegment guarded(int n) {
    MemorySegment s = arena.allocate(4L * n, 64);
    for (int i = 0; i < n; i++) {
      s.set(F32, 4L * i, GUARD);
    }
    return s;
  }

  private static double at(MemorySegment s, long i) {
    return s.get(F32, 4L * i);
  }

  @ParameterizedTest(name = "{0} {1} tokens={2} k={3}")
  @MethodSource("dots")
  void dotIsTheSumOfProducts(Kernels kernels, DType dtype, int tokens, int k) {
    int rows = 7;
    MemorySegment memory = arena.allocate(dtype.byteSize(rows * (k + 3L)), 64);
    Tensor w = Tensor.of(dtype, memory, rows, k + 3);
    for (int r = 0; r < rows; r++) {
      for (int i = 0; i < k + 3; i++) {
        w.set(random.nextDouble(-1, 1), r, i);
      }
    }
    MemorySegment x = floats(tokens * (k + 5));
    long[] at = new long[TypedKernels.MAX_TOKENS];
    for (int j = 0; j < tokens; j++) {
      at[j] = 4L * j * (k + 5);
    }
    MemorySegment out = guarded(tokens * 10 + 10);
    long wStride = dtype.byteSize(k + 3L);
    kernels
        .forType(dtype)
        .dot(
            w.segment(),
            w.byteOffset(),
            wStride,
            rows,
            x,
            at,
            tokens,
            k,
            out,
            4,
            40,
            new float[TypedKernels.DOT_SCRATCH]);
    for (int j = 0; j < tokens; j++) {
      for (int r = 0; r < rows; r++) {
        double sum = 0;
        for (int i = 0; i < k; i++) {
          sum += w.get(r, i) * at(x, at[j] / 4 + i);
        }
        assertThat(at(out, 1 + j * 10L + r)).isCloseTo(sum, within(NEAR));
      }
      assertThat(at(out, j * 10L + 8)).isEqualTo(GUARD);
    }
    assertThat(at(out, 0)).isEqualTo(GUARD);
  }

  @ParameterizedTest(name = "{0}")
  @MethodSource("both")
  void panelAddsTheProductOfItsRows(Kernels kernels) {
    for (int vectors = 1; vectors <= kernels.panelVectors(); vectors *= 2) {
      for (int k : new int[] {1, 17, 300}) {
        int width = vectors * kernels.lanes();
        float[] w = numbers(Kernels.PANEL_ROWS * Kernels.PANEL_STRIDE + 5);
        MemorySegment x = floats(k * width);
        float[] before = numbers(Kernels.PANEL_ROWS * width + 8);
        float[] c = before.clone();
        kernels.panel(w, 5, x, 0, vectors, k, c, 4);
        for (int r = 0; r < Kernels.PANEL_ROWS; r++) {
          for (int t = 0; t < width; t++) {
            double sum = before[4 + r * width + t];
            for (int i = 0; i < k; i++) {
              sum += (double) w[5 + r * Kernels.PANEL_STRIDE + i] * at(x, (long) i * width + t);
            }
            assertThat((double) c[4 + r * width + t]).isCloseTo(sum, within(NEAR));
          }
        }
        assertThat(c[3]).isEqualTo(before[3]);
        assertThat(c[c.length - 4]).isEqualTo(before[c.length - 4]);
      }
    }
  }

  @ParameterizedTest(name = "{0}")
  @MethodSource("both")
  void rowsMultiplyFewTokens(Kernels kernels) {
    for (int k : new int[] {3, 64, 2048}) {
      for (int tokens = 1; tokens <= Kernels.ROW_TOKENS; tokens++) {
        float[] w = numbers(8 * Kernels.PANEL_STRIDE);
        float[] x = numbers(Kernels.ROW_SCRATCH);
        float[] tokensOnly = x.clone();
        MemorySegment out = guarded(tokens * 12 + 12);
        kernels.rows(w, 0, 8, x, tokens, k, out, 4, 48, false);
        kernels.rows(w, 0, 8, x, tokens, k, out, 4, 48, true);
        for (int j = 0; j < tokens; j++) {
          for (int r = 0; r < 8; r++) {
            double sum = 0;
            for (int i = 0; i < k; i++) {
              sum +=
                  (double) w[r * Kernels.PANEL_STRIDE + i]
                      * tokensOnly[j * Kernels.PANEL_STRIDE + i];
            }
            assertThat(at(out, 1 + j * 12L + r)).isCloseTo(2 * sum, within(NEAR));
          }
          assertThat(at(out, j * 12L + 9)).isEqualTo(GUARD);
        }
        assertThat(at(out, tokens * 12L + 1)).isEqualTo(GUARD);
      }
    }
  }

  static Stream<Arguments> expands() {
    return both()
        .flatMap(k ->
            Stream.of(DType.F32, DType.BF16, DType.F16)
                .flatMap(
                    d -> Stream.of(1, 3, 4, 8, 16, 17, 40, 64).map(r -> Arguments.of(k, d, r))));
  }

  /**
   * B with ranks side by side, with rows side by side, and with gaps; every neighbour that must not
   * be seen is infinite.
   */
  @ParameterizedTest(name = "{0} {1} rank={2}")
  @MethodSource("expands")
  void expandMultipliesShrunkTokens(Kernels kernels, DType dtype, int rank) {
    long element = dtype.byteSize(1);
    for (int rows : new int[] {1, 5, 36, 200}) {
      for (int gap : new int[] {0, 2}) {
        long[][] steps = {
          {rank + gap, 1}, {1, rows + gap}, {(rank + gap) * 2L, 2},
        };
        for (long[] step : steps) {
          long room = rows * step[0] + rank * step[1];
          MemorySegment memory = arena.allocate(dtype.byteSize(room), 64);
          Tensor all = Tensor.of(dtype, memory, room);
          for (long i = 0; i < room; i++) {
            all.set(Double.POSITIVE_INFINITY, i);
          }
          Tensor b = Tensor.strided(dtype, all.memory(), 0, new long[] {rows, rank}, step);
          for (int i = 0; i < rows; i++) {
            for (int r = 0; r < rank; r++) {
              b.set(random.nextDouble(-1, 1), i, r);
            }
          }
          for (int tokens = 1; tokens <= 5; tokens += 2) {
            checkExpand(kernels.expandOf(dtype, memory), b, element, tokens);
          }
        }
      }
    }
  }

  private void checkExpand(ExpandKernel kernel, Tensor b, long element, int tokens) {
    int rows = (int) b.size(0);
    int rank = (int) b.size(1);
    MemorySegment s = floats(tokens * (rank + 2) + 64);
    for (int j = 0; j < tokens; j++) {
      s.set(F32, 4L * (j * (rank + 2) + rank), Float.NaN);
    }
    MemorySegment before = floats(tokens * (rows + 3) + 1);
    long[] at = new long[tokens];
    for (int j = 0; j < tokens; j++) {
      // The last token first: results go where the caller says.
      at[j] = 4L * (tokens - 1 - j) * (rows + 3) + 4;
    }
    for (boolean add : new boolean[] {true, false}) {
      MemorySegment dst = arena.allocate(before.byteSize()).copyFrom(before);
      long rowStep = b.stride(0) * element;
      long rankStep = b.stride(1) * element;
      MemorySegment memory = ((HostMemory) b.memory()).segment();
      kernel.expand(
          memory, 0, rowStep, rankStep, rows, rank, s, 0, 4L * (rank + 2), dst, at, tokens, add);
      for (int j = 0; j < tokens; j++) {
        long first = at[j] / 4;
        for (int i = 0; i < rows; i++) {
          double sum = add ? at(before, first + i) : 0;
          for (int r = 0; r < rank; r++) {
            sum += b.get(i, r) * at(s, j * (rank + 2L) + r);
          }
          assertThat(at(dst, first + i)).isCloseTo(sum, within(1e-5));
        }
        assertThat(at(dst, first - 1)).isEqualTo(at(before, first - 1));
        assertThat(at(dst, first + rows)).isEqualTo(at(before, first + rows));
      }
    }
  }

  @ParameterizedTest(name = "{0}")
  @MethodSource("both")
  void transposeFindsTheRowsOfATile(Kernels kernels) {
    int lanes = kernels.lanes();
    int first = lanes;
    for (int jump : new int[] {6, 12}) {
      for (int rows : new int[] {1, Math.max(1, lanes - 3), lanes}) {
        MemorySegment src = floats(lanes * (lanes + 2));
        MemorySegment dst = guarded(8 * jump * lanes);
        float[] turned = new float[lanes * lanes];
        kernels.transpose(src, 0, 4L * (lanes + 2), turned, dst, 0, 4L * lanes, first, jump, rows);
        double[] expected = new double[8 * jump * lanes];
        Arrays.fill(expected, GUARD);
        for (int j = 0; j < rows; j++) {
          int row = (first + j) / 6 * jump + (first + j) % 6;
          for (int t = 0; t < lanes; t++) {
            expected[row * lanes + t] = at(src, (long) t * (lanes + 2) + j);
          }
        }
        for (int i = 0; i < expected.length; i++) {
          assertThat(at(dst, i)).isEqualTo(expected[i]);
        }
      }
    }
  }

  @ParameterizedTest(name = "{0}")
  @MethodSource("both")
  void transposeTurnsABlockOver(Kernels kernels) {
    int lanes = kernels.lanes();
    int stride = lanes + 3;
    for (int rows : new int[] {1, lanes}) {
      for (int columns : new int[] {1, Math.max(1, lanes - 1), lanes}) {
        float[] src = numbers(lanes * stride + 2);
        float[] original = src.clone();
        MemorySegment dst = guarded((lanes + 1) * (lanes + 2));
        kernels.transpose(src, 2, stride, dst, 0, 4L * (lanes + 2), rows, columns);
        for (int j = 0; j <= lanes; j++) {
          for (int i = 0; i < lanes + 2; i++) {
            double expected = j < rows && i < columns ? original[2 + i * stride + j] : GUARD;
            assertThat(at(dst, (long) j * (lanes + 2) + i)).isEqualTo(expected);
          }
        }
      }
    }
  }
}
