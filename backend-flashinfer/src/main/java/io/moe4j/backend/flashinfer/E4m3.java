package io.moe4j.backend.flashinfer;

/**
 * The 8-bit float E4M3 without infinities: 448 is the largest, {@code 0x7F} and {@code 0xFF} are
 * NaN.
 */
final class E4m3 {
  /** The largest finite value. */
  static final float MAX = 448;

  private static final int MANTISSA_BITS = 3;
  private static final int BIAS = 7;
  private static final int NAN = 0x7F;
  private static final int SIGN = 0x80;
  private static final float[] VALUES = new float[256];

  static {
    for (int bits = 0; bits < VALUES.length; bits++) {
      int exponent = bits >> MANTISSA_BITS & 15;
      int mantissa = bits & 7;
      float v =
          exponent == 0
              ? Math.scalb((float) mantissa, 1 - BIAS - MANTISSA_BITS)
              : Math.scalb((float) (8 + mantissa), exponent - BIAS - MANTISSA_BITS);
      VALUES[bits] = (bits & NAN) == NAN ? Float.NaN : (bits & SIGN) == 0 ? v : -v;
    }
  }

  private E4m3() {}

  static float value(byte bits) {
    return VALUES[bits & 0xFF];
  }

  /** To the nearest, ties to even; too large becomes the largest. */
  static byte of(float value) {
    int sign = Float.floatToRawIntBits(value) >>> 31 << 7;
    if (Float.isNaN(value)) {
      return (byte) (sign | NAN);
    }
    float a = Math.min(Math.abs(value), MAX);
    int exponent = Math.max(a == 0 ? 1 - BIAS : Math.getExponent(a), 1 - BIAS);
    int steps = (int) Math.rint(Math.scalb((double) a, MANTISSA_BITS - exponent));
    // 8..15 steps above the smallest normal, 16 = the next exponent, below 8 = subnormal.
    int bits = steps < 8 ? steps : ((exponent + BIAS) << MANTISSA_BITS) + steps - 8;
    return (byte) (sign | bits);
  }
}
