package io.moe4j.backend.flashinfer;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.Weight;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.List;
import java.util.Objects;

/**
 * MXFP4 experts as Hopper's mixed GEMM wants them: all experts in one tensor, up rows before gate
 * rows, two weights a byte interleaved by the module's own function, and the scales folded by
 * blocks of 64 rows and 128 columns. Widths are padded with zeros to whole blocks, because gpt-oss
 * is 2880 wide. Filled once; the tensors are their collection's.
 */
final class Mxfp4Weights {
  /** Widths are whole tiles of the kernels. */
  static final int TILE = 128;

  private static final int FOLD_ROWS = 64;
  private static final int FOLD_COLUMNS = 128;
  private static final int FOLDED_ROWS = 16;
  private static final int GROUP = 32;

  private final ExpertWeights weights;
  private final boolean gated;
  private final long hidden;
  private final long intermediate;
  private final DeviceTensors tensors;
  private final Tensor w13;
  private final Tensor w2;
  private final List<Tensor> scales;

  /** Brings four-bit weights {@code [E, rows, columns / 2]} into the mixed GEMM's order. */
  interface Interleave {
    /** From one tensor to another, which does not overlap it. */
    void apply(Tensor from, Tensor to);
  }

  /**
   * @param weights MXFP4
   * @param gated whether there is a gate
   * @param hidden {@code H}, padded
   * @param intermediate {@code I}, padded
   * @param tensors where they are made
   * @param interleave the module's function: from, to
   */
  Mxfp4Weights(
      ExpertWeights weights,
      boolean gated,
      long hidden,
      long intermediate,
      DeviceTensors tensors,
      Interleave interleave) {
    this.weights = weights;
    this.gated = gated;
    this.hidden = hidden;
    this.intermediate = intermediate;
    this.tensors = tensors;
    w13 = interleaved(true, interleave);
    w2 = interleaved(false, interleave);
    scales = List.of(folded(true), folded(false));
  }

  private long rows(boolean first) {
    return first ? (gated ? 2 : 1) * intermediate : hidden;
  }

  private long columns(boolean first) {
    return first ? hidden : intermediate;
  }

  /** A map of an expert and the row at which it begins. */
  private record At(Weight weight, long row) {}

  private List<At> maps(int expert, boolean first) {
    ExpertWeights.Expert x = weights.expert(expert);
    if (!first) {
      return List.of(new At(x.down(), 0));
    }
    At up = new At(x.up(), 0);
    return gated
        ? List.of(up, new At(Objects.requireNonNull(x.gate()), intermediate))
        : List.of(up);
  }

  /** Two weights a byte, the first in the lower half, as bytes; rows may lie apart. */
  static Tensor bytes(Weight w) {
    Tensor codes = w.values();
    if (codes.stride(1) != 1 || codes.stride(0) % 2 != 0) {
      throw new IllegalArgumentException(w + " is " + codes + ", must have rows without gaps");
    }
    return Tensor.strided(
        DType.U8,
        codes.memory(),
        codes.byteOffset(),
        new long[] {w.out(), w.in() / 2},
        new long[] {codes.stride(0) / 2, 1});
  }

  /** Into a second tensor: the module's function does not work in place. */
  private Tensor interleaved(boolean first, Interleave interleave) {
    int experts = weights.numExperts();
    long rows = rows(first);
    long width = columns(first) / 2;
    Tensor to = tensors.allocate(DType.U8, experts, rows, width);
    try (DeviceTensors between = new DeviceTensors(tensors.device())) {
      Tensor plain = between.allocate(DType.U8, experts, rows, width);
      for (int e = 0; e < experts; e++) {
        try (Arena arena = Arena.ofConfined()) {
          MemorySegment padded = arena.allocate(rows * width, 64);
          for (At at : maps(e, first)) {
            MemorySegment from = tensors.onHost(bytes(at.weight()), arena).segment();
            long own = at.weight().in() / 2;
            for (long row = 0; row < at.weight().out(); row++) {
              MemorySegment.copy(from, row * own, padded, (at.row() + row) * width, own);
            }
          }
          between.copy(Tensor.of(DType.U8, padded, rows, width), plain.select(0, e));
        }
      }
      interleave.apply(plain, to);
      tensors.device().defaultStream().synchronize();
    }
    return to;
  }

  private Tensor folded(boolean first) {
    int experts = weights.numExperts();
    long rows = rows(first);
    long columns = columns(first);
    long groups = columns / GROUP;
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment folded = arena.allocate(experts * rows * groups, 64);
      for (int e = 0; e < experts; e++) {
        for (At at : maps(e, first)) {
          fold(at.weight(), arena, folded, e * rows + at.row(), groups);
        }
      }
      long lanes = (long) FOLD_ROWS / FOLDED_ROWS * (FOLD_COLUMNS / GROUP);
      return tensors.upload(
          DType.U8, folded, experts, rows / FOLD_ROWS, columns / FOLD_COLUMNS, FOLDED_ROWS, lanes);
    }
  }

  /**
   * Folds scales: a block of 64 rows and 128 columns becomes 16 rows of 16 bytes, in each of which
   * four slices of 16 rows stand beside each other with their four groups.
   *
   * @param to all experts' folded scales
   * @param firstRow of this weight among all rows; a multiple of 64
   * @param groups of a padded row; a multiple of 4
   */
  private void fold(Weight w, Arena arena, MemorySegment to, long firstRow, long groups) {
    MemorySegment from = tensors.onHost(w.scales().orElseThrow(), arena).segment();
    long own = w.in() / GROUP;
    long perBlock = FOLD_COLUMNS / GROUP;
    long blocks = groups / perBlock;
    for (long row = 0; row < w.out(); row++) {
      long all = firstRow + row;
      long slice = all % FOLD_ROWS / FOLDED_ROWS;
      for (long g = 0; g < own; g++) {
        long at =
            ((all / FOLD_ROWS * blocks + g / perBlock) * FOLDED_ROWS + all % FOLDED_ROWS)
                    * (FOLD_ROWS / FOLDED_ROWS * perBlock)
                + slice * perBlock
                + g % perBlock;
        to.set(ValueLayout.JAVA_BYTE, at, from.get(ValueLayout.JAVA_BYTE, row * own + g));
      }
    }
  }

  /** {@return U8 {@code [E, 2I or I, H / 2]}, padded} */
  Tensor w13() {
    return w13;
  }

  /** {@return U8 {@code [E, H, I / 2]}, padded} */
  Tensor w2() {
    return w2;
  }

  /** {@return the module's {@code quant_scales}, in its order} */
  List<Tensor> scales() {
    return scales;
  }
}
