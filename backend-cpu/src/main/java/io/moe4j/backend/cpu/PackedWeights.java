package io.moe4j.backend.cpu;

import static io.moe4j.backend.cpu.ffi.CallStruct.BLOCK;
import static io.moe4j.backend.cpu.ffi.CallStruct.HALF;

import io.moe4j.api.config.Activation;
import io.moe4j.api.lora.LoraTarget;
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
  final int count;
  final int hidden;
  final int intermediate;
  final int hiddenPadded;
  final int intermediatePadded;

  /** Activations that one block of w13 makes. */
  final int blockWidth;

  final PackedSide w13;
  final PackedSide w2;
  @Nullable MemorySegment b13;
  @Nullable MemorySegment b2;
  final LoraTarget gateTarget;
  final LoraTarget upTarget;
  final LoraTarget downTarget;

  /**
   * Weights that {@link #pack} will pack.
   *
   * @param from the weights
   * @param int8 whether rows that meet int4 or int8 weights become int8
   */
  PackedWeights(MlpWeights from, boolean int8) {
    activation = from.activation;
    count = from.count();
    hidden = from.hidden;
    intermediate = from.intermediate;
    hiddenPadded = padded(hidden);
    intermediatePadded = padded(intermediate);
    blockWidth = activation.isGated() ? HALF : BLOCK;
    gateTarget = from.gateTarget;
    upTarget = from.upTarget;
    downTarget = from.downTarget;
    w13 = new PackedSide(activation.isGated() ? from.gate : null, from.up, int8);
    w2 = new PackedSide(null, from.down, int8);
  }

  /** {@return why the kernels in C cannot read these weights; empty if they can} */
  String refusal() {
    String r = w13.refusal();
    return r.isEmpty() ? w2.refusal() : r;
  }

  /** {@return whether rows become int8 for some product} */
  boolean anyInt8() {
    return w13.takesInt8Rows() || w2.takesInt8Rows();
  }

  /** {@return bytes of packed weights} */
  long bytes() {
    return w13.bytes() + w2.bytes();
  }

  /**
   * Packs.
   *
   * @param from the same weights; not needed afterwards
   * @param kernels that pack
   * @param team whose threads do it
   * @param arena where packed weights go
   * @return whether it worked; see {@link PackedSide#pack}
   */
  boolean pack(MlpWeights from, NativeKernels kernels, ThreadTeam team, Arena arena) {
    b13 = any(from.gateBias) || any(from.upBias) ? bias13(from, arena) : null;
    b2 = any(from.downBias) ? bias2(from, arena) : null;
    return w13.pack(kernels, team, arena) && w2.pack(kernels, team, arena);
  }

  private static int padded(int n) {
    return Math.ceilDiv(n, BLOCK) * BLOCK;
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
    MemorySegment all = arena.allocate(4L * count * w13.blocks() * BLOCK, 64);
    int upLane = activation.isGated() ? HALF : 0;
    for (int e = 0; e < count; e++) {
      for (int i = 0; i < intermediate; i++) {
        long block = 4L * BLOCK * (e * w13.blocks() + i / blockWidth);
        if (activation.isGated()) {
          copy(from.gateBias[e], i, all, block + 4L * (i % HALF));
        }
        copy(from.upBias[e], i, all, block + 4L * (i % blockWidth + upLane));
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
