package io.moe4j.backend.cpu;

import static io.moe4j.backend.cpu.ffi.CallStruct.BLOCK;
import static io.moe4j.backend.cpu.ffi.CallStruct.HALF;

import io.moe4j.api.config.Activation;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.DType;
import io.moe4j.backend.cpu.ffi.HugeMemory;
import io.moe4j.backend.cpu.ffi.NativeKernels;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import org.jspecify.annotations.Nullable;

/**
 * Weights of some MLPs in the order in which the C kernels read them: blocks of 32 outputs, each
 * from front to back; 16 outputs of gate and the same of up are one block. In memory of their own,
 * on huge pages where there are some, first written by the threads that compute.
 */
final class PackedWeights {
  final Activation activation;
  final DType upType;
  final DType downType;
  final int count;
  final int hidden;
  final int intermediate;
  final int hiddenPadded;
  final int intermediatePadded;

  /** Activations that one block of w13 makes. */
  final int blockWidth;

  final MemorySegment w13;
  final MemorySegment w2;
  final @Nullable MemorySegment b13;
  final @Nullable MemorySegment b2;
  final LoraTarget gateTarget;
  final LoraTarget upTarget;
  final LoraTarget downTarget;

  /**
   * Packs.
   *
   * @param from the weights; not needed afterwards
   * @param kernels that pack
   * @param team whose threads do it
   * @param arena where packed weights go
   */
  PackedWeights(MlpWeights from, NativeKernels kernels, ThreadTeam team, Arena arena) {
    activation = from.activation;
    upType = from.type13().orElseThrow();
    downType = from.type2().orElseThrow();
    count = from.count();
    hidden = from.hidden;
    intermediate = from.intermediate;
    hiddenPadded = padded(hidden);
    intermediatePadded = padded(intermediate);
    blockWidth = activation.isGated() ? HALF : BLOCK;
    gateTarget = from.gateTarget;
    upTarget = from.upTarget;
    downTarget = from.downTarget;
    w13 = HugeMemory.allocate(count * expertBytes13(), arena);
    w2 = HugeMemory.allocate(count * expertBytes2(), arena);
    team.run((tile, _) -> pack13(from, kernels, tile), count * blocks13());
    team.run((tile, _) -> pack2(from, kernels, tile), count * blocks2());
    b13 = any(from.gateBias) || any(from.upBias) ? bias13(from, arena) : null;
    b2 = any(from.downBias) ? bias2(from, arena) : null;
  }

  /** {@return bytes of packed weights of some MLPs} */
  static long bytes(MlpWeights w) {
    long matrices = w.activation.isGated() ? 2 : 1;
    long elements = (long) padded(w.hidden) * padded(w.intermediate);
    int bits13 = w.type13().orElseThrow().bits();
    return w.count() * elements * (matrices * bits13 + w.type2().orElseThrow().bits()) / 8;
  }

  private static int padded(int n) {
    return Math.ceilDiv(n, BLOCK) * BLOCK;
  }

  int blocks13() {
    return intermediatePadded / blockWidth;
  }

  int blocks2() {
    return hiddenPadded / BLOCK;
  }

  long blockBytes13() {
    return (long) BLOCK * hiddenPadded * upType.bits() / 8;
  }

  long blockBytes2() {
    return (long) BLOCK * intermediatePadded * downType.bits() / 8;
  }

  long expertBytes13() {
    return blocks13() * blockBytes13();
  }

  long expertBytes2() {
    return blocks2() * blockBytes2();
  }

  private void pack13(MlpWeights from, NativeKernels kernels, int tile) {
    int e = tile / blocks13();
    int row = tile % blocks13() * blockWidth;
    Matrix first = activation.isGated() ? from.gate[e] : from.up[e];
    pack(kernels, upType, w13, tile * blockBytes13(), first, row, from.up[e], row + secondHalf());
  }

  private int secondHalf() {
    return activation.isGated() ? 0 : HALF;
  }

  private void pack2(MlpWeights from, NativeKernels kernels, int tile) {
    int e = tile / blocks2();
    int row = tile % blocks2() * BLOCK;
    pack(kernels, downType, w2, tile * blockBytes2(), from.down[e], row, from.down[e], row + HALF);
  }

  private static void pack(
      NativeKernels kernels,
      DType type,
      MemorySegment to,
      long at,
      Matrix first,
      int row0,
      Matrix second,
      int row1) {
    Rows m0 = (Rows) first;
    Rows m1 = (Rows) second;
    int k = m0.cols();
    long bytes = (long) BLOCK * padded(k) * m0.elementBytes();
    try (Arena arena = Arena.ofConfined()) {
      kernels.pack(
          to.asSlice(at, bytes).address(),
          type,
          k,
          padded(k),
          outOfFile(stretch(m0, row0), arena),
          m0.stride(),
          valid(m0, row0),
          outOfFile(stretch(m1, row1), arena),
          m1.stride(),
          valid(m1, row1));
    }
  }

  /**
   * {@return the bytes in memory that nobody can take away}. A page that its file no longer has
   * ends the process when C reads it, and is an error when the JVM does.
   */
  static MemorySegment outOfFile(MemorySegment s, Arena arena) {
    return s.isMapped() ? arena.allocate(s.byteSize(), 64).copyFrom(s) : s;
  }

  private static int valid(Rows m, int row) {
    return Math.clamp(m.rows() - row, 0, HALF);
  }

  /** Exactly what is read, so that reading more would be noticed here. */
  private static MemorySegment stretch(Rows m, int row) {
    int n = valid(m, row);
    return n == 0
        ? MemorySegment.NULL
        : m.segment()
            .asSlice(
                m.offset() + row * m.stride(),
                (n - 1) * m.stride() + (long) m.cols() * m.elementBytes());
  }

  private static boolean any(@Nullable MemorySegment[] biases) {
    for (MemorySegment b : biases) {
      if (b != null) {
        return true;
      }
    }
    return false;
  }

  /** {@code [expert][block][32]}, as a block's sums stand. */
  private MemorySegment bias13(MlpWeights from, Arena arena) {
    MemorySegment all = arena.allocate(4L * count * blocks13() * BLOCK, 64);
    for (int e = 0; e < count; e++) {
      for (int i = 0; i < intermediate; i++) {
        long block = 4L * BLOCK * (e * blocks13() + i / blockWidth);
        if (activation.isGated()) {
          copy(from.gateBias[e], i, all, block + 4L * (i % HALF));
        }
        copy(from.upBias[e], i, all, block + 4L * (i % blockWidth + HALF - secondHalf()));
      }
    }
    return all;
  }

  private MemorySegment bias2(MlpWeights from, Arena arena) {
    MemorySegment all = arena.allocate(4L * count * hiddenPadded, 64);
    for (int e = 0; e < count; e++) {
      for (int i = 0; i < hidden; i++) {
        copy(from.downBias[e], i, all, 4L * (e * (long) hiddenPadded + i));
      }
    }
    return all;
  }

  private static void copy(@Nullable MemorySegment bias, int i, MemorySegment to, long at) {
    if (bias != null) {
      MemorySegment.copy(bias, 4L * i, to, at, 4);
    }
  }
}
