package io.moe4j.reference;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.QuantScheme.Format;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.Packing;
import io.moe4j.api.weights.Weight;
import java.lang.foreign.MemorySegment;
import java.util.Random;
import java.util.function.IntBinaryOperator;
import org.junit.jupiter.api.Test;

/** Codes packed here the long way, by shifting, and read back through every packing. */
class DequantizeTest {
  private static final int OUT = 16;
  private static final int IN = 24;
  private static final int GROUP = 8;

  private final Random random = new Random(11);
  private final int[][] codes = new int[OUT][IN];
  private final int[][] zeros = new int[OUT][IN / GROUP];
  private final float[] scales = new float[OUT * (IN / GROUP)];

  private void draw(int bits) {
    for (int o = 0; o < OUT; o++) {
      for (int i = 0; i < IN; i++) {
        codes[o][i] = random.nextInt(1 << bits);
      }
      for (int g = 0; g < IN / GROUP; g++) {
        zeros[o][g] = 1 + random.nextInt((1 << bits) - 1);
        scales[o * (IN / GROUP) + g] = random.nextFloat() + 0.1f;
      }
    }
  }

  /** Words with field j of word w holding {@code element(fixed, w * perWord + order[j])}. */
  private static int word(int bits, IntBinaryOperator element, int fixed, int w, int[] order) {
    int word = 0;
    for (int j = 0; j < 32 / bits; j++) {
      word |=
          element.applyAsInt(fixed, w * (32 / bits) + (order.length == 0 ? j : order[j]))
              << j * bits;
    }
    return word;
  }

  private double expected(int o, int i, int zero) {
    return (codes[o][i] - zero) * (double) scales[o * (IN / GROUP) + i / GROUP];
  }

  @Test
  void gptqIsTransposedAndItsFirstFormatStoresZeroPointsLessOne() {
    for (int bits : new int[] {4, 8}) {
      draw(bits);
      int per = 32 / bits;
      int[] q = new int[IN / per * OUT];
      for (int w = 0; w < IN / per; w++) {
        for (int o = 0; o < OUT; o++) {
          q[w * OUT + o] = word(bits, (a, b) -> codes[a][b], o, w, new int[0]);
        }
      }
      int groups = IN / GROUP;
      int[] z = new int[groups * (OUT / per)];
      float[] s = new float[groups * OUT];
      int[] index = new int[IN];
      for (int g = 0; g < groups; g++) {
        for (int w = 0; w < OUT / per; w++) {
          z[g * (OUT / per) + w] = word(bits, (a, b) -> zeros[b][a] - 1, g, w, new int[0]);
        }
        for (int o = 0; o < OUT; o++) {
          s[g * OUT + o] = scales[o * groups + g];
        }
      }
      for (int i = 0; i < IN; i++) {
        index[i] = (i * 7 % IN) / GROUP; // a permutation: 8 inputs a group
      }
      QuantScheme scheme =
          QuantScheme.builder(bits == 4 ? Format.INT4 : Format.INT8)
              .group(GROUP)
              .symmetric(false)
              .actOrder(true)
              .build();
      Weight w =
          Weight.builder(
                  "qweight",
                  scheme,
                  OUT,
                  IN,
                  Tensor.ofInts(q, IN / per, OUT).transpose(0, 1),
                  Packing.WORDS_ALONG_IN)
              .scales(Tensor.ofFloats(s, groups, OUT).transpose(0, 1))
              .zeroPoints(
                  Tensor.ofInts(z, groups, OUT / per).transpose(0, 1), Packing.WORDS_ALONG_OUT, 1)
              .groupIndex(Tensor.ofInts(index, IN))
              .build();
      for (int o = 0; o < OUT; o++) {
        for (int i = 0; i < IN; i++) {
          int g = index[i];
          double truth = (codes[o][i] - zeros[o][g]) * (double) scales[o * groups + g];
          assertThat(Dequantize.value(w, o, i)).isEqualTo(truth);
        }
      }
    }
  }

  @Test
  void awqPacksOutputsInItsOwnOrder() {
    draw(4);
    int[] order = {0, 2, 4, 6, 1, 3, 5, 7};
    int[] q = new int[IN * OUT / 8];
    for (int i = 0; i < IN; i++) {
      for (int w = 0; w < OUT / 8; w++) {
        q[i * (OUT / 8) + w] = word(4, (a, b) -> codes[b][a], i, w, order);
      }
    }
    int groups = IN / GROUP;
    int[] z = new int[groups * OUT / 8];
    for (int g = 0; g < groups; g++) {
      for (int w = 0; w < OUT / 8; w++) {
        z[g * (OUT / 8) + w] = word(4, (a, b) -> zeros[b][a], g, w, order);
      }
    }
    Weight w =
        Weight.builder(
                "qweight",
                QuantScheme.builder(Format.INT4).group(GROUP).symmetric(false).build(),
                OUT,
                IN,
                Tensor.ofInts(q, IN, OUT / 8).transpose(0, 1),
                Packing.WORDS_ALONG_OUT_AWQ)
            .scales(Tensor.ofFloats(scales, OUT, groups))
            .zeroPoints(
                Tensor.ofInts(z, groups, OUT / 8).transpose(0, 1), Packing.WORDS_ALONG_OUT_AWQ, 0)
            .build();
    for (int o = 0; o < OUT; o++) {
      for (int i = 0; i < IN; i++) {
        assertThat(Dequantize.value(w, o, i)).isEqualTo(expected(o, i, zeros[o][i / GROUP]));
      }
    }
  }

  @Test
  void symmetricWordsHaveTheMiddleAsZero() {
    draw(4);
    int[] q = new int[OUT * IN / 8];
    for (int o = 0; o < OUT; o++) {
      for (int w = 0; w < IN / 8; w++) {
        q[o * (IN / 8) + w] = word(4, (a, b) -> codes[a][b], o, w, new int[0]);
      }
    }
    Weight w =
        Weight.builder(
                "weight_packed",
                QuantScheme.int4(GROUP),
                OUT,
                IN,
                Tensor.ofInts(q, OUT, IN / 8),
                Packing.WORDS_ALONG_IN)
            .scales(Tensor.ofFloats(scales, OUT, IN / GROUP))
            .build();
    for (int o = 0; o < OUT; o++) {
      for (int i = 0; i < IN; i++) {
        assertThat(Dequantize.value(w, o, i)).isEqualTo(expected(o, i, 8));
      }
    }
  }

  @Test
  void fp8BlocksMayBePartial() {
    byte[] bytes = {0x38, 0x40, (byte) 0xc4, 0x7e, 0x01, (byte) 0xb8}; // 1, 2, -3, 448, 2^-9, -1
    QuantScheme scheme = QuantScheme.builder(Format.FP8).block(2, 2).build();
    Weight w =
        Weight.builder(
                "weight",
                scheme,
                2,
                3,
                Tensor.of(DType.F8_E4M3, MemorySegment.ofArray(bytes), 2, 3),
                Packing.DENSE)
            .scales(Tensor.ofFloats(new float[] {2, 10}, 1, 2))
            .build();
    assertThat(Dequantize.row(w, 0)).containsExactly(2, 4, -30);
    assertThat(Dequantize.row(w, 1)).containsExactly(896, 2 * Math.scalb(1.0, -9), -10);
  }

  @Test
  void nvfp4HasAGlobalScaleInTwoConventions() {
    byte[] codes = new byte[8];
    codes[0] = 0x21; // input 0: 0.5, input 1: 1
    Tensor f4 = Tensor.of(DType.F4, MemorySegment.ofArray(codes), 1, 16);
    Tensor scale = Tensor.of(DType.F8_E4M3, MemorySegment.ofArray(new byte[] {0x48}), 1, 1); // 4
    for (boolean divided : new boolean[] {false, true}) {
      Weight w =
          Weight.builder("weight", QuantScheme.NVFP4, 1, 16, f4, Packing.DENSE)
              .scales(scale)
              .globalScale(Tensor.ofFloats(new float[] {divided ? 0.25f : 4}, 1), divided)
              .build();
      assertThat(Dequantize.row(w, 0)).startsWith(8, 16, 0);
    }
  }

  @Test
  void whatDoesNotFitIsNamed() {
    Tensor words = Tensor.ofInts(new int[OUT * IN / 8], OUT, IN / 8);
    Tensor right = Tensor.ofFloats(scales, OUT, IN / GROUP);
    Weight.Builder b =
        Weight.builder("up_proj", QuantScheme.int4(GROUP), OUT, IN, words, Packing.WORDS_ALONG_IN);
    assertThatIllegalArgumentException()
        .isThrownBy(b::build)
        .withMessage("up_proj is int4 group 8 and has no scales; expected [16, 3]");
    b.scales(right.transpose(0, 1));
    assertThatIllegalArgumentException()
        .isThrownBy(b::build)
        .withMessageStartingWith("up_proj [16, 24] int4 group 8: scales are F32[3, 16]")
        .withMessageEndingWith("must have shape [16, 3]");
    b.scales(right).zeroPoints(words, Packing.DENSE, 0);
    assertThatIllegalArgumentException()
        .isThrownBy(b::build)
        .withMessageContaining("which has no zero points");
    QuantScheme ordered = QuantScheme.int4(GROUP).toBuilder().actOrder(true).build();
    int[] index = new int[IN];
    index[5] = 3;
    assertThatIllegalArgumentException()
        .isThrownBy(() ->
            Weight.builder("up_proj", ordered, OUT, IN, words, Packing.WORDS_ALONG_IN)
                .scales(right)
                .groupIndex(Tensor.ofInts(index, IN))
                .build())
        .withMessage("up_proj group index of input 5 is 3, must be 0..2");
    assertThatIllegalArgumentException()
        .isThrownBy(() -> Weight.plain("up_proj", words))
        .withMessageContaining("must be of [F32, BF16, F16]");
  }
}
