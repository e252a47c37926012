package io.moe4j.reference;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.Activation.Kind;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.MemorySegment;
import org.assertj.core.data.Percentage;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;

class ReferenceMathTest {
  /** Values from tables (Abramowitz and Stegun 7.1 and its errata, 15 digits). */
  @ParameterizedTest
  @CsvSource({
    "0, 1",
    "0.5, 0.479500122186953",
    "1, 0.157299207050285",
    "1.999999, 4.677755648073953e-03",
    "2, 4.67773498104727e-03",
    "3, 2.20904969985854e-05",
    "5, 1.53745979442803e-12",
    "10, 2.08848758376254e-45",
    "-1, 1.84270079294971",
    "-3, 1.99997790950300"
  })
  void erfcMatchesTables(double x, double expected) {
    assertThat(ReferenceMath.erfc(x)).isCloseTo(expected, Percentage.withPercentage(1e-9));
  }

  @Test
  void erfcOfTheInfinitiesAndNan() {
    assertThat(ReferenceMath.erfc(Double.POSITIVE_INFINITY)).isZero();
    assertThat(ReferenceMath.erfc(Double.NEGATIVE_INFINITY)).isEqualTo(2);
    assertThat(ReferenceMath.erfc(Double.NaN)).isNaN();
  }

  /** Computed by hand from the formulas, sigma(1) = 0.731058578630005. */
  @ParameterizedTest
  @CsvSource({
    "SILU, 1, 2, 1.46211715726001",
    "GELU, 1, 2, 1.68268949213709",
    "GELU_TANH, 1, 2, 1.68238398121655",
    "SWIGLU_STEP, 1, 2, 1.46211715726001",
    "SILU_NO_MUL, 99, 1, 0.731058578630005",
    "GELU_NO_MUL, 99, 1, 0.841344746068543",
    "RELU2_NO_MUL, 99, 3, 9",
    "RELU2_NO_MUL, 99, -3, 0"
  })
  void plainActivations(Kind kind, double gate, double up, double expected) {
    assertThat(ReferenceMath.activate(Activation.plain(kind), gate, up))
        .isCloseTo(expected, within(1e-12));
  }

  @Test
  void swigluoaiClampsTheGateFromAboveOnlyAndAddsBeta() {
    double g = 7;
    double atLimit = g / (1 + Math.exp(-1.702f * g)) * (7 + 1);
    assertThat(ReferenceMath.activate(Activation.SWIGLUOAI, 50, 50)).isEqualTo(atLimit);
    double negative = -9 / (1 + Math.exp(1.702f * 9.0)) * (-7 + 1);
    assertThat(ReferenceMath.activate(Activation.SWIGLUOAI, -9, -50)).isEqualTo(negative);
  }

  @Test
  void siluClampsBeforeAndStepAfter() {
    double silu10 = 10 / (1 + Math.exp(-10.0));
    double silu2 = 2 / (1 + Math.exp(-2.0));
    assertThat(ReferenceMath.activate(Activation.SILU.withLimit(2), 10, 1)).isEqualTo(silu2);
    assertThat(ReferenceMath.activate(Activation.plain(Kind.SWIGLU_STEP).withLimit(2), 10, 1))
        .isEqualTo(2)
        .isLessThan(silu10);
  }

  @ParameterizedTest
  @EnumSource(Kind.class)
  void nanPassesThrough(Kind kind) {
    assertThat(ReferenceMath.activate(Activation.plain(kind), 1, Double.NaN)).isNaN();
  }

  @ParameterizedTest
  @EnumSource(
      value = DType.class,
      names = {"F32", "BF16", "F16", "F64"})
  void multiplyReadsEveryDtypeAndAnyStrides(DType dtype) {
    // 1..12 as [3, 4] are exact in every dtype
    Tensor m = Tensor.of(dtype, MemorySegment.ofArray(new byte[12 * 8]), 3, 4);
    for (int i = 0; i < 12; i++) {
      m.set(i + 1, i / 4, i % 4);
    }
    assertThat(ReferenceMath.multiply(m, new double[] {1, 10, 100, 1000}))
        .containsExactly(4321, 8765, 13209);
    assertThat(ReferenceMath.multiply(m.transpose(0, 1), new double[] {1, 10, 100}))
        .containsExactly(951, 1062, 1173, 1284);
  }

  @Test
  void multiplyNamesWhatDoesNotFit() {
    Tensor m = Tensor.ofFloats(new float[6], 2, 3);
    assertThatThrownBy(() -> ReferenceMath.multiply(m, new double[4]))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("F32[2, 3]")
        .hasMessageContaining("[out, 4]");
  }
}
