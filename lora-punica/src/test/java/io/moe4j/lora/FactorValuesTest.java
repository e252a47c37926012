package io.moe4j.lora;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;

import io.moe4j.api.AdapterException;
import io.moe4j.api.config.Activation;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.SharedExpertConfig;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.channels.FileChannel;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.Map;
import org.assertj.core.api.ThrowableAssertAlternative;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;

/** Elements that would become infinite are found, and nothing else is. */
class FactorValuesTest {
  private static float rounded(float value, DType to) {
    return switch (to) {
      case F16 -> Float.float16ToFloat(Float.floatToFloat16(value));
      case BF16 -> Float.intBitsToFloat(Tensor.toBFloat16(value) << 16);
      default -> value;
    };
  }

  private static Tensor halves(DType type, int... bits) {
    short[] all = new short[bits.length];
    for (int i = 0; i < bits.length; i++) {
      all[i] = (short) bits[i];
    }
    return Tensor.of(type, MemorySegment.ofArray(all), 1, 1, bits.length);
  }

  @ParameterizedTest
  @CsvSource({"BF16,F16", "BF16,BF16", "BF16,F32", "F16,F16", "F16,BF16", "F16,F32"})
  void everyNumberOf16Bits(DType own, DType to) {
    for (int bits = 0; bits < 1 << 16; bits++) {
      Tensor one = halves(own, bits);
      boolean fits = Float.isFinite(rounded((float) one.get(0, 0, 0), to));
      if (fits != (FactorValues.outOfRange(one, to) == null)) {
        throw new AssertionError(own + " " + one.get(0, 0, 0) + " in " + to + " fits: " + fits);
      }
    }
  }

  @ParameterizedTest
  @EnumSource(names = {"F16", "BF16", "F32"})
  void numbersOf32BitsAroundEveryLimit(DType to) {
    for (float at : new float[] {0, 65504, 65520, 0x1.fep127f, 0x1.ffp127f, Float.MAX_VALUE}) {
      for (int d = -3; d <= 3; d++) {
        float value = Float.intBitsToFloat(Math.max(0, Float.floatToRawIntBits(at) + d));
        for (float signed : new float[] {value, -value}) {
          Tensor one = Tensor.ofFloats(new float[] {signed}, 1, 1, 1);
          assertThat(FactorValues.outOfRange(one, to) == null)
              .as("%s in %s", signed, to)
              .isEqualTo(Float.isFinite(rounded(signed, to)));
        }
      }
    }
  }

  @Test
  void anyPlaceInAnyLayout() {
    int e = 2;
    int x = 3;
    int y = 5000;
    for (DType type : new DType[] {DType.F32, DType.BF16}) {
      for (long[] strides : new long[][] {{x * y, y, 1}, {x * y, 1, x}, {1, 2 * y, 2}}) {
        for (long[] at : new long[][] {{0, 0, 0}, {1, 2, 4999}, {1, 0, 4096}, {0, 1, 4095}}) {
          Tensor t =
              Tensor.strided(
                  type,
                  new HostMemory(MemorySegment.ofArray(new byte[e * x * y * 4 + 8])),
                  4,
                  new long[] {e, x, y},
                  strides);
          assertThat(FactorValues.outOfRange(t, DType.F16)).isNull();
          t.set(-1e5, at);
          assertThat(FactorValues.outOfRange(t, DType.F16)).isEqualTo(at);
        }
      }
    }
    // One matrix that all experts share.
    Tensor shared =
        Tensor.strided(
            DType.F32,
            new HostMemory(MemorySegment.ofArray(new float[] {1, 2, Float.NaN, 3})),
            0,
            new long[] {8, 2, 2},
            new long[] {0, 2, 1});
    assertThat(FactorValues.outOfRange(shared, DType.F32)).containsExactly(0, 1, 0);
  }

  // ---- at the registry's door

  private static MoeConfig config(DType weights) {
    return MoeConfig.builder(6, 4, 3, 1)
        .weightDtype(weights)
        .sharedExpert(new SharedExpertConfig(4, Activation.SILU, false))
        .lora(new LoraConfig(2, 8))
        .build();
  }

  private static LoraAdapter adapter(DType type, LoraTarget target, float value) {
    Tensor a = TestTensors.random(new java.util.SplittableRandom(1), type, 3, 2, 6);
    Tensor b = TestTensors.random(new java.util.SplittableRandom(2), type, 3, 4, 2);
    if (!target.isRouted()) {
      a = a.narrow(0, 1, 1);
      b = b.narrow(0, 1, 1);
      b.set(value, 0, 3, 1);
    } else {
      b.set(value, 1, 3, 1);
    }
    return new LoraAdapter("big", Map.of(5, new LoraLayer(Map.of(target, new LoraFactors(a, b)))));
  }

  private static AdapterRegistry registry(DType weights) {
    return AdapterRegistry.builder(Map.of(5, config(weights))).build();
  }

  private static ThrowableAssertAlternative<AdapterException> refused(
      AdapterRegistry r, LoraAdapter adapter) {
    return assertThatExceptionOfType(AdapterException.class).isThrownBy(() -> r.load(adapter));
  }

  @Test
  void aFactorTooLargeForTheWeightsDtypeIsRefused() {
    try (AdapterRegistry r = registry(DType.F16)) {
      refused(r, adapter(DType.BF16, LoraTarget.UP, 65536))
          .withMessage(
              "adapter 'big', layer 5: UP b, expert 1, element [3, 1] is 65536.0; the layer's"
                  + " weights are F16, so factors must be within +-65504.0");
      refused(r, adapter(DType.F32, LoraTarget.GATE, -1e9f)).withMessageContaining("is -1.0E9;");
      assertThat(r.names()).isEmpty();
      r.load(adapter(DType.BF16, LoraTarget.UP, 65280));
      assertThatExceptionOfType(AdapterException.class)
          .as("replacing too")
          .isThrownBy(() -> r.replace(adapter(DType.BF16, LoraTarget.UP, 1e38f)));
    }
    try (AdapterRegistry r = registry(DType.BF16)) {
      r.load(adapter(DType.BF16, LoraTarget.UP, 65536));
    }
    try (AdapterRegistry r = registry(DType.F16)) {
      // The block's own products take factors as they are.
      r.load(adapter(DType.BF16, LoraTarget.SHARED_UP, 65536));
    }
  }

  @ParameterizedTest
  @EnumSource(names = {"F16", "BF16", "F32"})
  void numbersThatAreNoneAreRefusedWhereverTheyStand(DType weights) {
    try (AdapterRegistry r = registry(weights)) {
      for (LoraTarget target : new LoraTarget[] {LoraTarget.UP, LoraTarget.SHARED_UP}) {
        refused(r, adapter(DType.F16, target, Float.NaN))
            .withMessageContaining(target + " b, ")
            .withMessageEndingWith("[3, 1] is NaN; factors must be finite");
        refused(r, adapter(DType.F32, target, Float.NEGATIVE_INFINITY))
            .withMessageEndingWith("[3, 1] is -Infinity; factors must be finite");
      }
    }
  }

  /** The mapping outlives what the file was cut to: its pages are gone. */
  @Test
  void aFileThatBecameShorterIsSaid(@TempDir Path dir) throws IOException {
    int rank = 8;
    int hidden = 1 << 14;
    MoeConfig config = MoeConfig.builder(hidden, 4, 3, 1).lora(new LoraConfig(2, rank)).build();
    try (Arena arena = Arena.ofShared();
        FileChannel file =
            FileChannel.open(
                dir.resolve("a"),
                StandardOpenOption.CREATE,
                StandardOpenOption.READ,
                StandardOpenOption.WRITE);
        AdapterRegistry r = AdapterRegistry.builder(Map.of(5, config)).build()) {
      long bytes = 3L * rank * hidden * Float.BYTES;
      Tensor a =
          Tensor.of(
              DType.F32,
              file.map(FileChannel.MapMode.READ_WRITE, 0, bytes, arena),
              3,
              rank,
              hidden);
      file.truncate(0);
      Tensor b = TestTensors.random(new java.util.SplittableRandom(2), DType.F32, 3, 4, rank);
      LoraAdapter cut =
          new LoraAdapter(
              "cut", Map.of(5, new LoraLayer(Map.of(LoraTarget.UP, new LoraFactors(a, b)))));
      refused(r, cut)
          .withMessageStartingWith(
              "adapter 'cut', layer 5: UP a: its file was changed in place while it was read");
      assertThat(r.names()).isEmpty();
    }
  }
}
