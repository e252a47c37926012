package io.moe4j.api.tensor;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;
import static org.assertj.core.api.Assertions.assertThatIllegalStateException;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.platform.DeviceId;
import java.lang.foreign.Arena;
import java.math.BigDecimal;
import java.math.MathContext;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

class TensorTest {
  private static final float[] COUNTING = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};

  @Test
  void viewsIndexTheSameElements() {
    Tensor t = Tensor.ofFloats(COUNTING, 2, 3, 2);
    assertThat(t.get(1, 2, 0)).isEqualTo(10);
    assertThat(t.select(0, 1).toFloats()).containsExactly(6, 7, 8, 9, 10, 11);
    assertThat(t.select(1, 2).toFloats()).containsExactly(4, 5, 10, 11);
    assertThat(t.transpose(1, 2).select(0, 0).toFloats()).containsExactly(0, 2, 4, 1, 3, 5);
    assertThat(t.select(0, 0).narrow(0, 1, 2).toFloats()).containsExactly(2, 3, 4, 5);
    assertThat(t.reshape(6, 2).sliced(0, 1, 3, 2).toFloats()).containsExactly(2, 3, 6, 7, 10, 11);
    assertThat(t.select(0, 1).expand(2).toFloats())
        .containsExactly(6, 7, 8, 9, 10, 11, 6, 7, 8, 9, 10, 11);
  }

  @Test
  void interleavedTransposedFileLayoutIsAView() {
    // gpt_oss keeps gate_up as [H, 2I] with gate in the even columns; H = 2, I = 3 here.
    Tensor file = Tensor.ofFloats(COUNTING, 2, 6);
    Tensor gate = file.transpose(0, 1).sliced(0, 0, 3, 2);
    Tensor up = file.transpose(0, 1).sliced(0, 1, 3, 2);
    assertThat(gate.shape()).containsExactly(3, 2);
    assertThat(gate.toFloats()).containsExactly(0, 6, 2, 8, 4, 10);
    assertThat(up.toFloats()).containsExactly(1, 7, 3, 9, 5, 11);
    assertThat(gate.isContiguous()).isFalse();
  }

  @Test
  void nothingReachesPastTheMemory() {
    HostMemory memory = new HostMemory(Arena.ofAuto().allocate(40));
    assertThat(Tensor.of(DType.F32, memory, 10).elementCount()).isEqualTo(10);
    assertThatIllegalArgumentException()
        .isThrownBy(() -> Tensor.of(DType.F32, memory, 11))
        .withMessageContaining("needs 44 bytes")
        .withMessageContaining("has 40");
    assertThatIllegalArgumentException()
        .isThrownBy(
            () -> Tensor.strided(DType.F32, memory, 4, new long[] {2, 2}, new long[] {8, 2}));
    assertThatIllegalArgumentException()
        .isThrownBy(() -> Tensor.of(DType.F32, memory, Long.MAX_VALUE, 4))
        .withMessageContaining("overflows");
    assertThatIllegalArgumentException()
        .isThrownBy(() ->
            Tensor.strided(DType.F32, memory, 0, new long[] {1L << 40}, new long[] {1L << 40}))
        .withMessageContaining("overflows");
    assertThatIllegalArgumentException().isThrownBy(() -> Tensor.of(DType.F32, memory, -1));
    assertThatIllegalArgumentException()
        .isThrownBy(() -> Tensor.strided(DType.F32, memory, 0, new long[] {2}, new long[] {-1}));
    Tensor t = Tensor.of(DType.F32, memory, 5, 2);
    assertThatThrownBy(() -> t.narrow(0, 4, 2)).isInstanceOf(IndexOutOfBoundsException.class);
    assertThatThrownBy(() -> t.select(1, 2)).isInstanceOf(IndexOutOfBoundsException.class);
    assertThatThrownBy(() -> t.get(0, 2)).isInstanceOf(IndexOutOfBoundsException.class);
    assertThatIllegalArgumentException().isThrownBy(() -> t.reshape(3, 3));
  }

  @Test
  void emptyTensorsNeedNoMemory() {
    HostMemory none = new HostMemory(Arena.ofAuto().allocate(0));
    Tensor t = Tensor.of(DType.BF16, none, 0, 128);
    assertThat(t.elementCount()).isZero();
    assertThat(t.isContiguous()).isTrue();
    assertThat(t.segment().byteSize()).isZero();
    assertThat(t.toFloats()).isEmpty();
  }

  @Test
  void deviceTensorsCannotBeRead() {
    Tensor t = Tensor.of(DType.F32, new DeviceMemory(DeviceId.CPU, 0x1000, 64), 4, 4).select(0, 2);
    assertThat(t.deviceAddress()).isEqualTo(0x1000 + 32);
    assertThat(t.isHost()).isFalse();
    assertThatIllegalStateException().isThrownBy(t::segment);
    assertThatIllegalStateException().isThrownBy(() -> t.get(0));
  }

  @ParameterizedTest
  @EnumSource(names = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "U16", "U32"})
  void elementsRoundTrip(DType dtype) {
    Tensor t = Tensor.of(dtype, Arena.ofAuto().allocate(64), 3);
    t.set(1, 0);
    t.set(100, 1);
    int third = dtype.name().startsWith("U") ? 3 : -3;
    t.set(third, 2);
    assertThat(t.get(0)).isEqualTo(1);
    assertThat(t.get(1)).isEqualTo(100);
    assertThat(t.get(2)).isEqualTo(third);
  }

  @Test
  void bfloat16RoundsToNearestEven() {
    Random random = new Random(7);
    MathContext exact = MathContext.UNLIMITED;
    for (int i = 0; i < 20_000; i++) {
      float value = Float.intBitsToFloat(random.nextInt());
      if (!Float.isFinite(value) || Math.abs(value) > 3e38f) {
        continue;
      }
      short got = Tensor.toBFloat16(value);
      int below = Float.floatToRawIntBits(value) & 0xffff0000;
      int above = below + 0x10000;
      BigDecimal toBelow =
          new BigDecimal(value).subtract(new BigDecimal(Float.intBitsToFloat(below)), exact).abs();
      BigDecimal toAbove =
          new BigDecimal(Float.intBitsToFloat(above)).subtract(new BigDecimal(value), exact).abs();
      int nearer = toBelow.compareTo(toAbove);
      int expected =
          nearer < 0 ? below : nearer > 0 ? above : (below >>> 16 & 1) == 0 ? below : above;
      assertThat(got).isEqualTo((short) (expected >>> 16));
    }
    assertThat(Float.intBitsToFloat(Tensor.toBFloat16(Float.NaN) << 16)).isNaN();
    assertThat(Float.intBitsToFloat(Tensor.toBFloat16(Float.intBitsToFloat(0x7f800001)) << 16))
        .isNaN();
    assertThat(Float.intBitsToFloat(Tensor.toBFloat16(Float.MAX_VALUE) << 16))
        .isEqualTo(Float.POSITIVE_INFINITY);
  }
}
