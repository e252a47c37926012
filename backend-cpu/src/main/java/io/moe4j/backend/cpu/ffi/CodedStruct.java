package io.moe4j.backend.cpu.ffi;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/** {@code struct moe_coded} and {@code struct moe_source} of moe.h, written field by field. */
public final class CodedStruct {
  /** Bytes of {@code struct moe_coded}. */
  static final long CODED_BYTES = 96;

  /** Bytes of {@code struct moe_source}. */
  static final long SOURCE_BYTES = 128;

  private final MemorySegment s;
  private long at;

  private CodedStruct(MemorySegment s) {
    this.s = s;
  }

  /**
   * {@return an empty {@code struct moe_coded}}
   *
   * @param arena where it lives
   */
  public static CodedStruct coded(Arena arena) {
    return new CodedStruct(arena.allocate(CODED_BYTES, 64));
  }

  /**
   * {@return an empty {@code struct moe_source}}
   *
   * @param arena where it lives
   */
  public static CodedStruct source(Arena arena) {
    return new CodedStruct(arena.allocate(SOURCE_BYTES, 64));
  }

  /**
   * Appends a number or an address.
   *
   * @param value the field
   * @return this
   */
  public CodedStruct put(long value) {
    s.set(ValueLayout.JAVA_LONG, at, value);
    at += Long.BYTES;
    return this;
  }

  /**
   * Appends a byte.
   *
   * @param value the field
   * @return this
   */
  public CodedStruct put(byte value) {
    s.set(ValueLayout.JAVA_BYTE, at++, value);
    return this;
  }

  /** {@return the struct, every field of which has been written} */
  public MemorySegment complete() {
    if (at != s.byteSize()) {
      throw new AssertionError("a struct has " + at + " bytes, not " + s.byteSize());
    }
    return s;
  }
}
