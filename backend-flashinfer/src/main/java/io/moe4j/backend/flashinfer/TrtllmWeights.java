package io.moe4j.backend.flashinfer;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.Weight;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Objects;

/**
 * A layer's plain experts as the TRTLLM kernels want them: up and gate rows alternate, within each
 * 32 rows the order is that in which a tile's epilogue holds them, and rows are cut into pieces of
 * 128 bytes, the same piece of all rows together. Widths are padded with zeros to whole tiles. Made
 * on the host, one expert at a time; the tensors are their collection's.
 */
final class TrtllmWeights {
  /** Bytes of a row that stand together. */
  static final int PIECE_BYTES = 128;

  /** Elements of a piece. */
  static final int PIECE = 64;

  private static final int SHUFFLED_ROWS = 32;
  private static final int SHUFFLED_LANES = 8;

  private final DeviceTensors tensors;
  private final Tensor w13;
  private final Tensor w2;

  /**
   * @param weights plain BF16 experts with gates
   * @param hidden {@code H}
   * @param intermediate {@code I}
   * @param tensors where they are made
   */
  TrtllmWeights(ExpertWeights weights, long hidden, long intermediate, DeviceTensors tensors) {
    this.tensors = tensors;
    int experts = weights.numExperts();
    long h = TrtllmScheme.PLAIN.padded(hidden);
    long i = TrtllmScheme.PLAIN.padded(intermediate);
    w13 = tensors.allocate(DType.BF16, experts, h / PIECE, 2 * i, PIECE);
    w2 = tensors.allocate(DType.BF16, experts, i / PIECE, h, PIECE);
    for (int e = 0; e < experts; e++) {
      ExpertWeights.Expert x = weights.expert(e);
      try (Arena arena = Arena.ofConfined()) {
        MemorySegment up = plain(x.up(), arena);
        MemorySegment gate = plain(Objects.requireNonNull(x.gate()), arena);
        MemorySegment both = arena.allocate(DType.BF16.byteSize(h * 2 * i), PIECE_BYTES);
        for (long r = 0; r < 2 * i; r++) {
          long from = rowBefore(r);
          if (from / 2 < intermediate) {
            copyRow(from % 2 == 0 ? up : gate, from / 2, 2 * hidden, both, r, 2 * i);
          }
        }
        tensors.copy(Tensor.of(DType.BF16, both, h / PIECE, 2 * i, PIECE), w13.select(0, e));
      }
      try (Arena arena = Arena.ofConfined()) {
        MemorySegment down = plain(x.down(), arena);
        MemorySegment all = arena.allocate(DType.BF16.byteSize(h * i), PIECE_BYTES);
        for (long r = 0; r < h; r++) {
          long from = rowBefore(r);
          if (from < hidden) {
            copyRow(down, from, 2 * intermediate, all, r, h);
          }
        }
        tensors.copy(Tensor.of(DType.BF16, all, i / PIECE, h, PIECE), w2.select(0, e));
      }
    }
  }

  /** {@return the row that stands at a row's place once each 32 are in the epilogue's order} */
  static long rowBefore(long row) {
    long in = row % SHUFFLED_ROWS;
    long each = SHUFFLED_ROWS / SHUFFLED_LANES;
    return row - in + in % SHUFFLED_LANES * each + in / SHUFFLED_LANES;
  }

  private MemorySegment plain(Weight weight, Arena arena) {
    return tensors.onHost(weight.plain(), arena).segment();
  }

  /** A row of so many bytes, to where its pieces stand among those of all rows. */
  static void copyRow(
      MemorySegment from, long row, long bytes, MemorySegment to, long at, long rows) {
    for (long piece = 0; piece * PIECE_BYTES < bytes; piece++) {
      MemorySegment.copy(
          from,
          row * bytes + piece * PIECE_BYTES,
          to,
          (piece * rows + at) * PIECE_BYTES,
          Math.min(PIECE_BYTES, bytes - piece * PIECE_BYTES));
    }
  }

  /** {@return BF16 {@code [E, H / 64, 2I, 64]}, {@code H} and {@code I} padded} */
  Tensor w13() {
    return w13;
  }

  /** {@return BF16 {@code [E, I / 64, H, 64]}, {@code H} and {@code I} padded} */
  Tensor w2() {
    return w2;
  }
}
