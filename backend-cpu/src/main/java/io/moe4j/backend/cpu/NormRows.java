package io.moe4j.backend.cpu;

import io.moe4j.api.config.RmsNorm;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.backend.cpu.kernel.Kernels;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/** {@link RmsNorm} of all rows of a batch, into F32. The mean is summed in double. */
final class NormRows {
  private static final ValueLayout.OfFloat F32 = ValueLayout.JAVA_FLOAT_UNALIGNED;

  private final float epsilon;
  private final float[] norm;

  NormRows(RmsNorm config, Tensor norm) {
    epsilon = config.epsilon();
    this.norm = norm.toFloats();
  }

  /**
   * Normalises.
   *
   * @param kernels widens what is not F32
   * @param hidden {@code [T, H]}, dense
   * @param to F32 {@code [T, H]} from its beginning on
   */
  void run(Kernels kernels, Tensor hidden, MemorySegment to) {
    int h = norm.length;
    MemorySegment from = FileMemory.read(hidden);
    var typed = kernels.forType(Rows.requireFloat("hidden", hidden), from);
    long rowBytes = hidden.dtype().byteSize(h);
    float[] row = new float[h];
    for (long t = 0; t < hidden.size(0); t++) {
      typed.widen(from, t * rowBytes, row, 0, h);
      double squares = 0;
      for (float x : row) {
        squares += (double) x * x;
      }
      double factor = 1 / Math.sqrt(squares / h + epsilon);
      for (int i = 0; i < h; i++) {
        to.setAtIndex(F32, t * h + i, (float) (row[i] * factor * norm[i]));
      }
    }
  }
}
