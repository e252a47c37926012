package io.moe4j.api.weights;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.Random;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

class WeightSlicesTest {
  private static final int OUT = 64;
  private static final int IN = 96;
  private static final Random RANDOM = new Random(3);

  private static Tensor random(DType dtype, long... shape) {
    long n = Arrays.stream(shape).reduce(1, Math::multiplyExact);
    byte[] bytes = new byte[Math.toIntExact(dtype.byteSize(n))];
    RANDOM.nextBytes(bytes);
    return Tensor.of(dtype, MemorySegment.ofArray(bytes), shape);
  }

  private static Tensor floats(long... shape) {
    long n = Arrays.stream(shape).reduce(1, Math::multiplyExact);
    float[] values = new float[Math.toIntExact(n)];
    for (int i = 0; i < values.length; i++) {
      values[i] = (float) RANDOM.nextGaussian();
    }
    return Tensor.ofFloats(values, shape);
  }

  @Test
  void toPlainRefusesWhatTheDtypeCannotHold() {
    float[] scales = {1, 1, 600, 1};
    byte[] codes = new byte[4 * 4];
    codes[2 * 4 + 3] = 0x7e; // 448
    Weight w =
        Weight.builder(
                "up_proj",
                QuantScheme.builder(QuantScheme.Format.FP8).perChannel().build(),
                4,
                4,
                Tensor.of(DType.F8_E4M3, MemorySegment.ofArray(codes), 4, 4),
                Packing.DENSE)
            .scales(Tensor.ofFloats(scales, 4, 1))
            .build();
    assertThatThrownBy(() -> w.toPlain(DType.F16))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("up_proj [4, 4]")
        .hasMessageContaining(
            "element [2, 3] is 268800.0, too large for F16, whose largest number is 65504");
    assertThat(w.toPlain(DType.BF16).plain().get(2, 3)).isEqualTo(268_800, within(1024.0));
    // What is no number in the file stays none.
    scales[2] = Float.POSITIVE_INFINITY;
    assertThat(w.toPlain(DType.F16).plain().get(2, 3)).isInfinite();
  }

  /** Powers of two between 1 and 128. */
  private static Tensor fp8Scales(int rows, int columns) {
    byte[] bytes = new byte[rows * columns];
    for (int i = 0; i < bytes.length; i++) {
      bytes[i] = (byte) (0x38 + 8 * RANDOM.nextInt(8));
    }
    return Tensor.of(DType.F8_E4M3, MemorySegment.ofArray(bytes), rows, columns);
  }

  /** Names begin with the borders at which outputs and inputs may be cut. */
  static Stream<Weight> weights() {
    QuantScheme asymmetric = QuantScheme.int4(32).toBuilder().symmetric(false).build();
    return Stream.of(
        Weight.plain("1 1 plain", floats(OUT, IN)),
        Weight.builder(
                "1 32 words along in",
                QuantScheme.int4(32),
                OUT,
                IN,
                random(DType.I32, OUT, IN / 8),
                Packing.WORDS_ALONG_IN)
            .scales(floats(OUT, IN / 32))
            .build(),
        Weight.builder(
                "8 32 words along out, zero points",
                asymmetric,
                OUT,
                IN,
                random(DType.I32, OUT / 8, IN),
                Packing.WORDS_ALONG_OUT)
            .scales(floats(OUT, IN / 32))
            .zeroPoints(random(DType.I32, OUT / 8, IN / 32), Packing.WORDS_ALONG_OUT, 1)
            .build(),
        Weight.builder(
                "8 32 awq",
                asymmetric,
                OUT,
                IN,
                random(DType.I32, OUT / 8, IN),
                Packing.WORDS_ALONG_OUT_AWQ)
            .scales(floats(OUT, IN / 32))
            .zeroPoints(random(DType.I32, OUT / 8, IN / 32), Packing.WORDS_ALONG_OUT_AWQ, 0)
            .build(),
        Weight.builder(
                "1 1 int8 per channel",
                QuantScheme.builder(QuantScheme.Format.INT8).perChannel().build(),
                OUT,
                IN,
                random(DType.I8, OUT, IN),
                Packing.DENSE)
            .scales(floats(OUT, 1))
            .build(),
        Weight.builder(
                "32 16 int8 blocks",
                QuantScheme.builder(QuantScheme.Format.INT8).block(32, 16).build(),
                OUT,
                IN,
                random(DType.I8, OUT, IN),
                Packing.DENSE)
            .scales(floats(OUT / 32, IN / 16))
            .build(),
        Weight.builder(
                "1 16 nvfp4", QuantScheme.NVFP4, OUT, IN, random(DType.F4, OUT, IN), Packing.DENSE)
            .scales(fp8Scales(OUT, IN / 16))
            .globalScale(floats(1), true)
            .build());
  }

  private static double[] part(Tensor all, long row, long rows, long column, long columns) {
    double[] values = new double[Math.toIntExact(rows * columns)];
    for (int i = 0; i < values.length; i++) {
      values[i] = all.get(row + i / columns, column + i % columns);
    }
    return values;
  }

  @ParameterizedTest
  @MethodSource("weights")
  void slicesAreTheWholesRowsAndColumns(Weight w) {
    String[] borders = w.name().split(" ");
    int rowUnit = Integer.parseInt(borders[0]);
    int columnUnit = Integer.parseInt(borders[1]);
    Tensor all = w.toPlain(DType.F32).plain();
    for (int row = 0; row < OUT; row += rowUnit) {
      int rows = Math.min(OUT - row, 2 * rowUnit);
      assertThat(w.outputs(row, rows).toPlain(DType.F32).plain().toDoubles())
          .isEqualTo(part(all, row, rows, 0, IN));
    }
    for (int column = 0; column < IN; column += columnUnit) {
      int columns = Math.min(IN - column, 2 * columnUnit);
      assertThat(w.inputs(column, columns).toPlain(DType.F32).plain().toDoubles())
          .isEqualTo(part(all, 0, OUT, column, columns));
    }
    if (rowUnit > 1) {
      assertThatThrownBy(() -> w.outputs(rowUnit / 2, rowUnit))
          .isInstanceOf(IllegalArgumentException.class)
          .hasMessageContaining(w.name())
          .hasMessageContaining("cut through");
    }
    if (columnUnit > 1) {
      assertThatThrownBy(() -> w.inputs(columnUnit / 2, columnUnit))
          .isInstanceOf(IllegalArgumentException.class)
          .hasMessageContaining(w.name())
          .hasMessageContaining("cut through");
    }
    assertThatThrownBy(() -> w.inputs(IN - 1, 2)).hasMessageContaining("are asked of");
    assertThatThrownBy(() -> w.outputs(0, 0)).hasMessageContaining("are asked of");
  }

  @Test
  void actOrderHasNoColumnsOfItsOwn() {
    int[] index = new int[IN];
    Arrays.setAll(index, i -> (i * 7) % 3);
    Weight w =
        Weight.builder(
                "act-ordered",
                QuantScheme.int4(32).toBuilder().actOrder(true).build(),
                OUT,
                IN,
                random(DType.I32, OUT, IN / 8),
                Packing.WORDS_ALONG_IN)
            .scales(floats(OUT, IN / 32))
            .groupIndex(Tensor.ofInts(index, IN))
            .build();
    Tensor all = w.toPlain(DType.F32).plain();
    assertThat(w.outputs(8, 16).toPlain(DType.F32).plain().toDoubles())
        .isEqualTo(part(all, 8, 16, 0, IN));
    assertThat(w.inputs(0, IN).toPlain(DType.F32).plain().toDoubles()).isEqualTo(all.toDoubles());
    assertThatThrownBy(() -> w.inputs(0, 32)).hasMessageContaining("act-order");
  }
}
