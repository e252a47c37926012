package io.moe4j.backend.cpu;

/** Floats of 4 bits, E2M1 (OCP Microscaling Formats v1.0). */
final class Float4 {
  /** By code. */
  static final float[] VALUES = {
    0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0f, -0.5f, -1, -1.5f, -2, -3, -4, -6
  };

  private Float4() {}
}
