package io.moe4j.backend.cpu;

/** Floats of 8 bits (OCP 8-bit Floating Point, OCP Microscaling Formats v1.0). */
final class Float8 {
  private Float8() {}

  /** {@return an E4M3 without infinities: all ones is NaN} */
  static float value(byte code) {
    int exponent = code >> 3 & 15;
    int mantissa = code & 7;
    if ((code & 127) == 127) {
      return Float.NaN;
    }
    float size =
        exponent == 0 ? mantissa * 0x1p-9f : Math.scalb(1 + mantissa * 0.125f, exponent - 7);
    return code < 0 ? -size : size;
  }

  /** {@return the power of two of an E8M0, 255 = NaN} */
  static float power(byte exponent) {
    int e = Byte.toUnsignedInt(exponent);
    return e == 255 ? Float.NaN : Math.scalb(1f, e - 127);
  }
}
