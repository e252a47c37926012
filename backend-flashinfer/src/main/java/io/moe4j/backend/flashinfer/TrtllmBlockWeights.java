package io.moe4j.backend.flashinfer;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.Weight;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.List;
import java.util.Objects;

/**
 * A layer's FP8 experts with a scale for 128 x 128 weights, as the TRTLLM kernels want them: rows
 * as they are, up before gate, because the activation is a kernel of its own. Widths are padded
 * with zeros to whole blocks, each map by itself. Made on the host, one map at a time; the tensors
 * are their collection's.
 */
final class TrtllmBlockWeights {
  private static final int BLOCK = 128;

  private final ExpertWeights weights;
  private final DeviceTensors tensors;
  private final Tensor w13;
  private final Tensor w13Scales;
  private final Tensor w2;
  private final Tensor w2Scales;

  /**
   * @param weights FP8 in blocks, with gates
   * @param tensors where they are made
   */
  TrtllmBlockWeights(ExpertWeights weights, DeviceTensors tensors) {
    this.weights = weights;
    this.tensors = tensors;
    Weight up = weights.expert(0).up();
    long h = TrtllmScheme.FP8_BLOCK.padded(up.in());
    long i = TrtllmScheme.FP8_BLOCK.padded(up.out());
    w13 = codes(true, 2 * i, h);
    w13Scales = scales(true, 2 * i / BLOCK, h / BLOCK);
    w2 = codes(false, h, i);
    w2Scales = scales(false, h / BLOCK, i / BLOCK);
  }

  /** The maps of an expert that stand in one tensor, in the order of their rows. */
  private List<Weight> maps(int expert, boolean first) {
    ExpertWeights.Expert x = weights.expert(expert);
    return first ? List.of(x.up(), Objects.requireNonNull(x.gate())) : List.of(x.down());
  }

  private Tensor codes(boolean first, long rows, long columns) {
    Tensor to = tensors.allocate(DType.F8_E4M3, weights.numExperts(), rows, columns);
    for (int e = 0; e < weights.numExperts(); e++) {
      try (Arena arena = Arena.ofConfined()) {
        MemorySegment padded = arena.allocate(rows * columns, 64);
        List<Weight> maps = maps(e, first);
        long each = rows / maps.size();
        for (int m = 0; m < maps.size(); m++) {
          Weight w = maps.get(m);
          MemorySegment from = tensors.onHost(w.values(), arena).segment();
          for (long r = 0; r < w.out(); r++) {
            MemorySegment.copy(from, r * w.in(), padded, (m * each + r) * columns, w.in());
          }
        }
        tensors.copy(Tensor.of(DType.F8_E4M3, padded, rows, columns), to.select(0, e));
      }
    }
    return to;
  }

  private Tensor scales(boolean first, long rows, long columns) {
    float[] all = new float[Math.toIntExact(weights.numExperts() * rows * columns)];
    for (int e = 0; e < weights.numExperts(); e++) {
      List<Weight> maps = maps(e, first);
      long each = rows / maps.size();
      for (int m = 0; m < maps.size(); m++) {
        try (Arena arena = Arena.ofConfined()) {
          float[] own = tensors.onHost(maps.get(m).scales().orElseThrow(), arena).toFloats();
          System.arraycopy(
              own, 0, all, Math.toIntExact((e * rows + m * each) * columns), own.length);
        }
      }
    }
    return tensors.floats(all, weights.numExperts(), rows, columns);
  }

  /** {@return {@code [E, 2I, H]}, padded} */
  Tensor w13() {
    return w13;
  }

  /** {@return F32 {@code [E, 2I / 128, H / 128]}} */
  Tensor w13Scales() {
    return w13Scales;
  }

  /** {@return {@code [E, H, I]}, padded} */
  Tensor w2() {
    return w2;
  }

  /** {@return F32 {@code [E, H / 128, I / 128]}} */
  Tensor w2Scales() {
    return w2Scales;
  }
}
