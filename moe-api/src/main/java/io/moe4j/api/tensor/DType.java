package io.moe4j.api.tensor;

/**
 * Element types, with the names the safetensors format uses.
 *
 * @since 0.1.0
 */
public enum DType {
  /** IEEE binary64. */
  F64(64, true),
  /** IEEE binary32. */
  F32(32, true),
  /** IEEE binary16. */
  F16(16, true),
  /** bfloat16: the upper half of a binary32. */
  BF16(16, true),
  /** 8-bit float, 4 exponent and 3 mantissa bits, no infinities. */
  F8_E4M3(8, true),
  /** 8-bit float, 5 exponent and 2 mantissa bits. */
  F8_E5M2(8, true),
  /** 8-bit power of two, {@code 2^(bits - 127)}, 255 = NaN: the block scale of the MX formats. */
  F8_E8M0(8, true),
  /**
   * 4-bit float (E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives); two to a byte, low half
   * first.
   */
  F4(4, true),
  /** Signed 64-bit integer. */
  I64(64, false),
  /** Signed 32-bit integer. */
  I32(32, false),
  /** Signed 16-bit integer. */
  I16(16, false),
  /** Signed 8-bit integer. */
  I8(8, false),
  /** Unsigned 64-bit integer. */
  U64(64, false),
  /** Unsigned 32-bit integer. */
  U32(32, false),
  /** Unsigned 16-bit integer. */
  U16(16, false),
  /** Unsigned 8-bit integer. */
  U8(8, false),
  /** One byte, 0 or 1. */
  BOOL(8, false);

  private final int bits;
  private final boolean floating;

  DType(int bits, boolean floating) {
    this.bits = bits;
    this.floating = floating;
  }

  /** {@return the size of one element in bits} */
  public int bits() {
    return bits;
  }

  /** {@return whether this is a floating-point type} */
  public boolean isFloating() {
    return floating;
  }

  /**
   * {@return the bytes that {@code count} densely packed elements take}
   *
   * @param count number of elements, not negative
   * @throws ArithmeticException if the result does not fit a long, or the elements do not fill
   *     whole bytes
   */
  public long byteSize(long count) {
    if (bits >= 8) {
      return Math.multiplyExact(count, bits / 8);
    }
    long totalBits = Math.multiplyExact(count, bits);
    if (totalBits % 8 != 0) {
      throw new ArithmeticException(
          count + " elements of " + this + " (" + bits + " bits) do not fill whole bytes");
    }
    return totalBits / 8;
  }
}
