package io.moe4j.integration;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.Packing;
import io.moe4j.api.weights.Weight;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.ConcurrentHashMap;

/** Random tensors on the host, and experts of them, bf16 or quantised; the same in every run. */
final class RandomTensors {
  private static final int PERIOD = 1_000_003;
  private static final int ROW = 24 * PERIOD;
  private static final Map<Double, byte[]> ROWS = new ConcurrentHashMap<>();

  private final Random random;

  RandomTensors(int seed) {
    random = new Random(seed);
  }

  /**
   * {@return a layer's experts}
   *
   * @param c sizes and schemes
   * @param deviation of w13
   * @param deviation2 of w2
   */
  ExpertWeights experts(MoeConfig c, double deviation, double deviation2) {
    List<ExpertWeights.Expert> all = new ArrayList<>();
    for (int e = 0; e < c.numLocalExperts(); e++) {
      all.add(expert(c, deviation, deviation2));
    }
    return new ExpertWeights(all);
  }

  private ExpertWeights.Expert expert(MoeConfig c, double deviation, double deviation2) {
    int h = c.hiddenSize();
    int i = c.intermediateSize();
    ExpertWeights.Expert expert;
    if (!c.isQuantized()) {
      expert =
          ExpertWeights.Expert.plain(
              host(deviation, i, h), host(deviation, i, h), host(deviation2, h, i));
    } else {
      QuantScheme first = c.w13Schemes().getFirst();
      QuantScheme second = c.w2Schemes().getFirst();
      Weight gate = quantised("gate", first, deviation, i, h, 5);
      Weight up = quantised("up", first, deviation, i, h, 5);
      expert = ExpertWeights.Expert.of(gate, up, quantised("down", second, deviation2, h, i, 7));
    }
    return c.expertBias() ? expert.withBias(host(0.3, i), host(0.3, i), host(0.3, h)) : expert;
  }

  /** Codes of one size, scales that differ from group to group. */
  private Weight quantised(
      String name, QuantScheme scheme, double deviation, int out, int in, int stride) {
    if (scheme.equals(QuantScheme.MXFP4)) {
      return Weight.mxfp4(bytes(DType.F4, 0, 255, out, in), exponents(deviation / 3, out, in / 32));
    }
    int rows = Math.toIntExact(scheme.scaleRowCount(out));
    int groups = Math.toIntExact(scheme.scaleColumnCount(in));
    if (scheme.format() == QuantScheme.Format.FP8) {
      Tensor codes = signed(bytes(DType.F8_E4M3, 0x30, 0x3F, out, in));
      return Weight.builder(name, scheme, out, in, codes, Packing.DENSE)
          .scales(scales(DType.F32, deviation, rows, groups))
          .build();
    }
    if (scheme.equals(QuantScheme.NVFP4)) {
      // Scales from 1 to 2; the rest is in the global scale.
      float global = (float) (deviation / 4 * (1 + random.nextDouble()));
      return Weight.builder(name, scheme, out, in, bytes(DType.F4, 0, 255, out, in), Packing.DENSE)
          .scales(bytes(DType.F8_E4M3, 0x38, 0x3F, rows, groups))
          .globalScale(Tensor.ofFloats(new float[] {global}, 1), false)
          .build();
    }
    int bits = scheme.bits();
    int per = Integer.SIZE / bits;
    double unit = deviation / (bits == 4 ? 5 : 80);
    // As GPTQ has it: words along the inputs, transposed.
    Weight.Builder b =
        Weight.builder(
                name,
                scheme,
                out,
                in,
                words(Math.ceilDiv(in, per), out).transpose(0, 1),
                Packing.WORDS_ALONG_IN)
            .scales(scales(DType.F16, unit, groups, rows).transpose(0, 1));
    if (!scheme.symmetric()) {
      b.zeroPoints(
          words(groups, Math.ceilDiv(out, per)).transpose(0, 1), Packing.WORDS_ALONG_OUT, 1);
    }
    if (scheme.actOrder()) {
      int[] index = new int[in];
      for (int k = 0; k < in; k++) {
        index[(int) ((long) k * stride % in)] = k / scheme.scaleColumns();
      }
      b.groupIndex(Tensor.ofInts(index, in));
    }
    return b.build();
  }

  private Tensor words(int rows, int columns) {
    return Tensor.ofInts(random.ints((long) rows * columns).toArray(), rows, columns);
  }

  private Tensor scales(DType dtype, double unit, int rows, int columns) {
    Tensor t =
        Tensor.of(
            dtype,
            MemorySegment.ofArray(new byte[Math.toIntExact(dtype.byteSize((long) rows * columns))]),
            rows,
            columns);
    for (int r = 0; r < rows; r++) {
      for (int c = 0; c < columns; c++) {
        t.set(unit * (0.5 + random.nextDouble()), r, c);
      }
    }
    return t;
  }

  /** The sixteen numbers of 4 bits, all equally likely, have a deviation of 3. */
  private Tensor exponents(double middle, int rows, int columns) {
    int exponent = 127 + Math.getExponent(middle);
    return bytes(DType.F8_E8M0, exponent - 2, exponent + 1, rows, columns);
  }

  private Tensor bytes(DType dtype, int least, int most, int rows, int columns) {
    byte[] all = new byte[Math.toIntExact(dtype.byteSize((long) rows * columns))];
    for (int i = 0; i < all.length; i++) {
      all[i] = (byte) random.nextInt(least, most + 1);
    }
    return Tensor.of(dtype, MemorySegment.ofArray(all), rows, columns);
  }

  /** Numbers of one sign would sum up to gates so far from 0 that a rounding of them shows. */
  private Tensor signed(Tensor codes) {
    MemorySegment all = codes.segment();
    for (long i = 0; i < all.byteSize(); i++) {
      if (random.nextBoolean()) {
        all.set(ValueLayout.JAVA_BYTE, i, (byte) (all.get(ValueLayout.JAVA_BYTE, i) | 0x80));
      }
    }
    return codes;
  }

  /** Normal numbers in bf16, each tensor another piece of one long row of them. */
  Tensor host(double deviation, long... shape) {
    long count = 1;
    for (long s : shape) {
      count *= s;
    }
    byte[] row = ROWS.computeIfAbsent(deviation, RandomTensors::row);
    if (count > ROW / 2) {
      row = Arrays.copyOf(row, Math.toIntExact(2 * count));
      for (int at = 2 * ROW; at < row.length; at += 2 * ROW) {
        System.arraycopy(row, 0, row, at, Math.min(2 * ROW, row.length - at));
      }
    }
    long from = 8L * random.nextInt(Math.toIntExact((row.length / 2 - count) / 8 + 1));
    MemorySegment piece = MemorySegment.ofArray(row).asSlice(2 * from, 2 * count);
    return Tensor.of(DType.BF16, new HostMemory(piece), shape);
  }

  private static byte[] row(double deviation) {
    byte[] row = new byte[2 * ROW];
    Tensor all = Tensor.of(DType.BF16, MemorySegment.ofArray(row), ROW);
    Random random = new Random(11);
    for (int i = 0; i < PERIOD; i++) {
      all.set(random.nextGaussian(0, deviation), i);
    }
    for (int at = 2 * PERIOD; at < row.length; at += 2 * PERIOD) {
      System.arraycopy(row, 0, row, at, Math.min(2 * PERIOD, row.length - at));
    }
    return row;
  }
}
