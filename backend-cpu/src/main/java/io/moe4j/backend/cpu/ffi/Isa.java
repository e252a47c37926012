package io.moe4j.backend.cpu.ffi;

import java.util.Arrays;
import java.util.Optional;

/**
 * Instruction sets that the C kernels are written for; of one architecture each contains those
 * before it.
 */
public enum Isa {
  /** 256-bit vectors with FMA and F16C. */
  AVX2(1, "AVX2"),
  /** 512-bit vectors (F, BW, DQ, VL). */
  AVX512(2, "AVX-512"),
  /** AVX-512 that multiplies pairs of bf16. */
  AVX512BF16(3, "AVX-512 BF16"),
  /** Tiles of bf16 (Sapphire Rapids and later). */
  AMX(4, "AMX"),
  /** 128-bit vectors of aarch64. */
  NEON(5, "NEON"),
  /** NEON that multiplies pairs of bf16. */
  NEONBF16(6, "NEON BF16");

  private final int code;
  private final String title;

  Isa(int code, String title) {
    this.code = code;
    this.title = title;
  }

  /**
   * {@return whether a machine has it}
   *
   * @param best the number of the machine's best one
   */
  boolean isIn(int best) {
    boolean arm = code >= NEON.code;
    return arm == best >= NEON.code && code <= best;
  }

  /** {@return whether there are units that multiply bf16} */
  boolean multipliesBf16() {
    return this == AVX512BF16 || this == AMX || this == NEONBF16;
  }

  /** {@return its number in moe.h} */
  int code() {
    return code;
  }

  /** {@return the set of a number of moe.h; empty for none} */
  static Optional<Isa> of(int code) {
    return Arrays.stream(values()).filter(i -> i.code == code).findFirst();
  }

  /** {@return as people write it} */
  public String title() {
    return title;
  }
}
