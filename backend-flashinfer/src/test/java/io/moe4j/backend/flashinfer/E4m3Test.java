package io.moe4j.backend.flashinfer;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.Random;
import org.junit.jupiter.api.Test;

/** Every code, and rounding against a search among all of them. */
class E4m3Test {
  @Test
  void everyCodeComesBack() {
    for (int bits = 0; bits < 256; bits++) {
      float v = E4m3.value((byte) bits);
      if ((bits & 0x7F) == 0x7F) {
        assertThat(v).isNaN();
        assertThat(E4m3.of(v) & 0x7F).isEqualTo(0x7F);
      } else {
        assertThat(E4m3.of(v)).isEqualTo((byte) bits);
      }
    }
    assertThat(E4m3.value((byte) 0x7E)).isEqualTo(448);
    assertThat(E4m3.value((byte) 0x01)).isEqualTo(0x1p-9f);
    assertThat(E4m3.value((byte) 0x38)).isEqualTo(1);
  }

  @Test
  void valuesBetweenGoToTheNearestAndTiesToEven() {
    Random random = new Random(1);
    for (int n = 0; n < 20000; n++) {
      float v = (float) ((random.nextDouble() - 0.5) * Math.pow(2, random.nextInt(-12, 11)));
      assertThat(E4m3.of(v)).as("%s", v).isEqualTo(nearest(v));
    }
    for (int bits = 0; bits < 0x7E; bits++) {
      float tie = (E4m3.value((byte) bits) + E4m3.value((byte) (bits + 1))) / 2;
      assertThat(E4m3.of(tie)).isEqualTo((byte) (bits + (bits & 1)));
      assertThat(E4m3.of(-tie)).isEqualTo((byte) ((bits + (bits & 1)) | 0x80));
    }
    assertThat(E4m3.of(1e9f)).isEqualTo((byte) 0x7E);
    assertThat(E4m3.of(Float.NEGATIVE_INFINITY)).isEqualTo((byte) 0xFE);
  }

  private static byte nearest(float v) {
    int best = 0;
    for (int bits = 0; bits < 256; bits++) {
      float c = E4m3.value((byte) bits);
      if (Float.isNaN(c) || (c == 0 && bits != 0)) {
        continue;
      }
      double d = Math.abs((double) c - v);
      double b = Math.abs((double) E4m3.value((byte) best) - v);
      if (d < b || (d == b && (bits & 1) == 0)) {
        best = bits;
      }
    }
    return (byte) (best == 0 && v < 0 ? 0x80 : best);
  }
}
