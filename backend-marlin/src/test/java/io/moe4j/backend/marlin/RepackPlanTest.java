package io.moe4j.backend.marlin;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.QuantScheme.Format;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.Packing;
import io.moe4j.api.weights.Weight;
import io.moe4j.reference.Dequantize;
import java.lang.foreign.MemorySegment;
import java.util.Random;
import org.junit.jupiter.api.Test;

/** Every packing and scheme through repacking and back, against the float64 dequantisation. */
class RepackPlanTest {
  private static final int OUT = 40;
  private static final int IN = 192;

  private final Random random = new Random(3);

  private Tensor words(long... shape) {
    int[] w = new int[Math.toIntExact(shape[0] * shape[1])];
    for (int i = 0; i < w.length; i++) {
      w[i] = random.nextInt();
    }
    return Tensor.ofInts(w, shape);
  }

  /** Bytes that are no NaN in any format used here. */
  private Tensor bytes(DType type, long rows, long columns) {
    byte[] b = new byte[Math.toIntExact(type.byteSize(rows * columns))];
    random.nextBytes(b);
    for (int i = 0; i < b.length; i++) {
      if (type == DType.F8_E4M3 && (b[i] & 0x7F) == 0x7F) {
        b[i] = 3;
      }
    }
    return Tensor.of(type, MemorySegment.ofArray(b), rows, columns);
  }

  /** Scales whose 11 bits an F16 ratio keeps. */
  private Tensor scales(DType type, long rows, long columns) {
    if (type == DType.F8_E4M3 || type == DType.F8_E8M0) {
      byte[] b = new byte[Math.toIntExact(rows * columns)];
      for (int i = 0; i < b.length; i++) {
        b[i] = (byte) (type == DType.F8_E8M0 ? 118 + random.nextInt(8) : 8 + random.nextInt(100));
      }
      return Tensor.of(type, MemorySegment.ofArray(b), rows, columns);
    }
    Tensor t =
        Tensor.of(
            type,
            MemorySegment.ofArray(new byte[Math.toIntExact(type.byteSize(rows * columns))]),
            rows,
            columns);
    for (int r = 0; r < rows; r++) {
      for (int c = 0; c < columns; c++) {
        t.set((128 + random.nextInt(128)) * Math.scalb(1.0, -14 - random.nextInt(3)), r, c);
      }
    }
    return t;
  }

  private static void same(Weight weight) {
    RepackPlan plan = RepackPlan.of(weight);
    same(weight, plan);
    long whole = plan.layout().wholeInputs();
    same(weight, plan.between(0, 2 * whole));
    same(weight, plan.between(whole, 2 * whole));
  }

  private static void same(Weight weight, RepackPlan plan) {
    HostRepack packed = new HostRepack(weight, plan);
    int[] order = plan.permutation();
    for (int n = 0; n < weight.out(); n++) {
      for (int k = 0; k < plan.layout().in(); k++) {
        int from = order == null ? k : order[k];
        double expected = from < 0 ? 0 : Dequantize.value(weight, n, from);
        long own = k - plan.firstInput();
        if (from < 0
            && own >= plan.inputs()
            && own < PackedLayout.of(weight.scheme(), weight.out(), weight.in()).wholeInputs()) {
          // The last group goes on behind the weight's own inputs; x is zero there.
          continue;
        }
        assertThat(packed.value(n, k))
            .as("%s, output %d, input %d", weight, n, k)
            .isEqualTo(expected);
      }
    }
  }

  private static Tensor turned(Tensor t) {
    return t.transpose(0, 1);
  }

  @Test
  void gptqInBothFormats() {
    for (int bits : new int[] {4, 8}) {
      for (int group : new int[] {16, 32, 48, 64, 96, 128, 192, 0}) {
        for (boolean symmetric : new boolean[] {true, false}) {
          int per = 32 / bits;
          int groups = group == 0 ? 1 : Math.ceilDiv(IN, group);
          QuantScheme scheme =
              QuantScheme.builder(bits == 4 ? Format.INT4 : Format.INT8)
                  .group(group)
                  .symmetric(symmetric)
                  .build();
          Weight.Builder b =
              Weight.builder(
                      "q", scheme, OUT, IN, turned(words(IN / per, OUT)), Packing.WORDS_ALONG_IN)
                  .scales(turned(scales(DType.F16, groups, OUT)));
          if (!symmetric) {
            b.zeroPoints(turned(words(groups, OUT / per)), Packing.WORDS_ALONG_OUT, 1);
          }
          same(b.build());
        }
      }
    }
  }

  @Test
  void actOrderIsAPermutationOfInputs() {
    int group = 32;
    int[] index = new int[IN];
    for (int i = 0; i < IN; i++) {
      index[i] = i * 35 % IN / group;
    }
    QuantScheme scheme =
        QuantScheme.builder(Format.INT4).group(group).symmetric(false).actOrder(true).build();
    same(
        Weight.builder("q", scheme, OUT, IN, turned(words(IN / 8, OUT)), Packing.WORDS_ALONG_IN)
            .scales(turned(scales(DType.F16, IN / group, OUT)))
            .zeroPoints(turned(words(IN / group, OUT / 8)), Packing.WORDS_ALONG_OUT, 1)
            .groupIndex(Tensor.ofInts(index, IN))
            .build());
    index[0] = index[1] == index[0] ? (index[0] + 1) % (IN / group) : index[1];
    Weight uneven =
        Weight.builder("q", scheme, OUT, IN, turned(words(IN / 8, OUT)), Packing.WORDS_ALONG_IN)
            .scales(turned(scales(DType.F16, IN / group, OUT)))
            .zeroPoints(turned(words(IN / group, OUT / 8)), Packing.WORDS_ALONG_OUT, 1)
            .groupIndex(Tensor.ofInts(index, IN))
            .build();
    assertThatIllegalArgumentException()
        .isThrownBy(() -> RepackPlan.of(uneven))
        .withMessageContaining("q group index")
        .withMessageContaining("6 groups of 32 inputs");
  }

  @Test
  void awq() {
    for (int group : new int[] {32, 64, 192}) {
      QuantScheme scheme = QuantScheme.builder(Format.INT4).group(group).symmetric(false).build();
      same(
          Weight.builder(
                  "q", scheme, OUT, IN, turned(words(IN, OUT / 8)), Packing.WORDS_ALONG_OUT_AWQ)
              .scales(turned(scales(DType.F16, IN / group, OUT)))
              .zeroPoints(turned(words(IN / group, OUT / 8)), Packing.WORDS_ALONG_OUT_AWQ, 0)
              .build());
    }
  }

  @Test
  void compressedTensors() {
    for (int bits : new int[] {4, 8}) {
      int per = 32 / bits;
      QuantScheme scheme =
          QuantScheme.builder(bits == 4 ? Format.INT4 : Format.INT8)
              .group(32)
              .symmetric(false)
              .build();
      same(
          Weight.builder("w", scheme, OUT, IN, words(OUT, IN / per), Packing.WORDS_ALONG_IN)
              .scales(scales(DType.BF16, OUT, IN / 32))
              .zeroPoints(words(OUT / per, IN / 32), Packing.WORDS_ALONG_OUT, 0)
              .build());
    }
  }

  /** As its files had them before they were packed: a number a group, of any integer type. */
  @Test
  void zeroPointsThatAreNotPacked() {
    for (int bits : new int[] {4, 8}) {
      int half = 1 << (bits - 1);
      QuantScheme scheme =
          QuantScheme.builder(bits == 4 ? Format.INT4 : Format.INT8)
              .group(32)
              .symmetric(false)
              .build();
      for (DType type : new DType[] {DType.I8, DType.U8, DType.I16, DType.I32}) {
        int least = type == DType.U8 ? 0 : -half;
        byte[] memory = new byte[Math.toIntExact(type.byteSize(OUT * IN / 32))];
        Tensor zeros = Tensor.of(type, MemorySegment.ofArray(memory), OUT, IN / 32);
        for (int o = 0; o < OUT; o++) {
          for (int g = 0; g < IN / 32; g++) {
            zeros.set(least + random.nextInt(2 * half), o, g);
          }
        }
        Weight given =
            Weight.builder("w", scheme, OUT, IN, words(OUT, IN * bits / 32), Packing.WORDS_ALONG_IN)
                .scales(scales(DType.BF16, OUT, IN / 32))
                .zeroPoints(zeros, Packing.DENSE, least == 0 ? 0 : half)
                .build();
        Weight read = MarlinWeights.bytesOfZeroPoints(given);
        assertThat(Dequantize.all(read)).isDeepEqualTo(Dequantize.all(given));
        same(read);
      }
    }
  }

  @Test
  void denseSignedIntegers() {
    same(
        Weight.builder(
                "w",
                QuantScheme.int8(QuantScheme.ALL),
                OUT,
                IN,
                bytes(DType.I8, OUT, IN),
                Packing.DENSE)
            .scales(scales(DType.F32, OUT, 1))
            .build());
    QuantScheme scheme = QuantScheme.builder(Format.INT8).group(64).symmetric(false).build();
    same(
        Weight.builder("w", scheme, OUT, IN, bytes(DType.I8, OUT, IN), Packing.DENSE)
            .scales(scales(DType.BF16, OUT, IN / 64))
            .zeroPoints(bytes(DType.I8, OUT, IN / 64), Packing.DENSE, 0)
            .build());
  }

  @Test
  void fp8() {
    Tensor codes = bytes(DType.F8_E4M3, OUT, IN);
    QuantScheme.Builder fp8 = QuantScheme.builder(Format.FP8);
    same(
        Weight.builder("w", fp8.perTensor().build(), OUT, IN, codes, Packing.DENSE)
            .scales(scales(DType.F32, 1, 1))
            .build());
    same(
        Weight.builder("w", fp8.perChannel().build(), OUT, IN, codes, Packing.DENSE)
            .scales(scales(DType.BF16, OUT, 1))
            .build());
    same(
        Weight.builder("w", QuantScheme.MXFP8, OUT, IN, codes, Packing.DENSE)
            .scales(scales(DType.F8_E8M0, OUT, IN / 32))
            .build());
    // Partial blocks on both sides.
    same(
        Weight.builder(
                "w", QuantScheme.FP8_BLOCK, 144, IN, bytes(DType.F8_E4M3, 144, IN), Packing.DENSE)
            .scales(scales(DType.F32, 2, 2))
            .build());
  }

  @Test
  void fp4() {
    same(Weight.mxfp4(bytes(DType.F4, OUT, IN), scales(DType.F8_E8M0, OUT, IN / 32)));
    for (boolean divided : new boolean[] {true, false}) {
      same(
          Weight.builder("w", QuantScheme.NVFP4, OUT, IN, bytes(DType.F4, OUT, IN), Packing.DENSE)
              .scales(scales(DType.F8_E4M3, OUT, IN / 16))
              .globalScale(Tensor.ofFloats(new float[] {divided ? 64f : 1 / 64f}, 1), divided)
              .build());
    }
  }

  @Test
  void whatCannotBeKeptSaysWhy() {
    assertThat(PackedLayout.reasonAgainst(QuantScheme.NONE).orElseThrow()).contains("plain floats");
    assertThat(PackedLayout.reasonAgainst(QuantScheme.int4(24)).orElseThrow())
        .contains("24 inputs")
        .contains("multiple of 16");
    assertThat(PackedLayout.reasonAgainst(QuantScheme.int4(48))).isEmpty();
    QuantScheme fp8 = QuantScheme.builder(Format.FP8).group(16).build();
    assertThat(PackedLayout.reasonAgainst(fp8).orElseThrow()).contains("multiple of 32");
  }
}
