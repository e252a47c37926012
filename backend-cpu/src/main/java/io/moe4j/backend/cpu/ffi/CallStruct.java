package io.moe4j.backend.cpu.ffi;

import io.moe4j.api.config.Activation;
import io.moe4j.api.tensor.DType;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/**
 * The structs of moe.h by offset. The C side tells its sizes ({@link NativeKernels} compares them),
 * so that the two cannot drift apart unnoticed.
 */
public final class CallStruct {
  private static final ValueLayout.OfLong I64 = ValueLayout.JAVA_LONG_UNALIGNED;
  private static final ValueLayout.OfInt I32 = ValueLayout.JAVA_INT_UNALIGNED;
  private static final ValueLayout.OfFloat F32 = ValueLayout.JAVA_FLOAT_UNALIGNED;

  /** Bytes of {@code struct moe_call}. */
  public static final long CALL_BYTES = 312;

  /** Bytes of {@code struct moe_target}. */
  static final long TARGET_BYTES = 72;

  /** Bytes of {@code struct moe_segment}. */
  public static final long SEGMENT_BYTES = 16 + 3 * TARGET_BYTES;

  /** The number in moe.h of weights in codes, beside those of {@link #code(DType)}. */
  public static final int CODED = 3;

  /** Outputs of a block. */
  public static final int BLOCK = 32;

  /** Outputs of gate, and of up, in a block of both. */
  public static final int HALF = 16;

  /** Positions of a task at most. */
  public static final int MAX_ROWS = 256;

  private final MemorySegment s;
  private long at;

  /**
   * Writes a {@code struct moe_call}, field by field.
   *
   * @param where {@link #CALL_BYTES}
   */
  public CallStruct(MemorySegment where) {
    s = where;
  }

  /**
   * Appends a size, a number or an address.
   *
   * @param value the field
   * @return this
   */
  public CallStruct put(long value) {
    s.set(I64, at, value);
    at += 8;
    return this;
  }

  /**
   * Appends a float.
   *
   * @param value the field
   * @return this
   */
  public CallStruct put(float value) {
    s.set(F32, at, value);
    at += 4;
    return this;
  }

  /** {@return whether every field has been written} */
  public boolean isComplete() {
    return at == CALL_BYTES;
  }

  /**
   * {@return a dtype's number in moe.h}
   *
   * @param type F32, BF16 or F16
   */
  public static int code(DType type) {
    return switch (type) {
      case F32 -> 0;
      case BF16 -> 1;
      case F16 -> 2;
      default -> throw new IllegalArgumentException("dtype is " + type + ", must be F32, BF16 or F16");
    };
  }

  /**
   * {@return an activation's number in moe.h}
   *
   * @param kind which function
   */
  public static int code(Activation.Kind kind) {
    return switch (kind) {
      case SILU -> 0;
      case GELU -> 1;
      case GELU_TANH -> 2;
      case SWIGLUOAI -> 3;
      case SWIGLU_STEP -> 4;
      case SILU_NO_MUL -> 5;
      case GELU_NO_MUL -> 6;
      case GELU_TANH_NO_MUL -> 7;
      case RELU2_NO_MUL -> 8;
    };
  }

  /**
   * Writes the head of a {@code struct moe_segment}.
   *
   * @param s where segments are
   * @param at where the segment begins
   * @param from first sorted position
   * @param to behind the last
   */
  public static void segment(MemorySegment s, long at, long from, long to) {
    s.set(I64, at, from);
    s.set(I64, at + 8, to);
  }

  /**
   * Writes an empty target of a segment.
   *
   * @param s where segments are
   * @param segment where the segment begins
   * @param which 0 gate, 1 up, 2 down
   */
  public static void noTarget(MemorySegment s, long segment, int which) {
    s.set(I32, segment + 16 + which * TARGET_BYTES + 56, 0);
  }

  /**
   * Writes one target of a segment; distances in bytes.
   *
   * @param s where segments are
   * @param segment where the segment begins
   * @param which 0 gate, 1 up, 2 down
   * @param a address of A of the expert
   * @param aRow from one rank to the next
   * @param aCol from one input to the next
   * @param aType its dtype
   * @param b address of B of the expert
   * @param bOut from one output to the next
   * @param bRank from one rank to the next
   * @param bType its dtype
   * @param rank at least 1
   * @param shrunk address of the segment's first row of what A makes of x
   * @param ownShrink false where another target's shrink makes it
   */
  public static void target(
      MemorySegment s,
      long segment,
      int which,
      long a,
      long aRow,
      long aCol,
      DType aType,
      long b,
      long bOut,
      long bRank,
      DType bType,
      int rank,
      long shrunk,
      boolean ownShrink) {
    long at = segment + 16 + which * TARGET_BYTES;
    s.set(I64, at, a);
    s.set(I64, at + 8, aRow);
    s.set(I64, at + 16, aCol);
    s.set(I64, at + 24, b);
    s.set(I64, at + 32, bOut);
    s.set(I64, at + 40, bRank);
    s.set(I64, at + 48, shrunk);
    s.set(I32, at + 56, rank);
    s.set(I32, at + 60, code(aType));
    s.set(I32, at + 64, code(bType));
    s.set(I32, at + 68, ownShrink ? 1 : 0);
  }
}
