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
import org.jspecify.annotations.Nullable;

/**
 * Experts with a scale for a block of weights, as the {@code fused_moe} module wants them: all
 * experts in one tensor, up rows before gate rows. Scales of 128 x 128 weights are F32 in the same
 * order. Scales of a group of a row are bytes in the order in which Blackwell's tensor cores read
 * them: 128 rows and four groups are 512 bytes, in which four rows that lie 32 apart stand side by
 * side. All widths are multiples of 128. Filled once; the tensors are their collection's.
 */
final class BlockScaledWeights {
  private static final int BLOCK = 128;
  private static final int TILE_ROWS = 128;
  private static final int TILE_GROUPS = 4;
  private static final int TILE_BYTES = TILE_ROWS * TILE_GROUPS;
  private static final int LANES = 32;

  /** Four-bit weights of one element of the tensor that the module is given. */
  private static final int PER_LONG = 16;

  private final ExpertWeights weights;
  private final boolean gated;
  private final CutlassScheme scheme;
  private final DeviceTensors tensors;
  private final MatrixScales numbers;
  private final int experts;
  private final long hidden;
  private final long intermediate;
  private final Tensor w13;
  private final Tensor w2;
  private final List<Tensor> scales;

  /**
   * @param weights of the scheme
   * @param gated whether there is a gate
   * @param scheme one with scales of blocks
   * @param tensors where they are made
   */
  BlockScaledWeights(
      ExpertWeights weights, boolean gated, CutlassScheme scheme, DeviceTensors tensors) {
    this.weights = weights;
    this.gated = gated;
    this.scheme = scheme;
    this.tensors = tensors;
    this.numbers = new MatrixScales(tensors);
    this.experts = weights.numExperts();
    this.hidden = weights.expert(0).up().in();
    this.intermediate = weights.expert(0).up().out();
    w13 = codes(rows13(), hidden, true);
    w2 = codes(hidden, intermediate, false);
    scales =
        switch (scheme) {
          case FP8_BLOCK -> List.of(blocks(true), blocks(false));
          case NVFP4 -> nvfp4();
          default -> List.of(groups(true, null), ones(), groups(false, null), ones());
        };
  }

  private long rows13() {
    return gated ? 2 * intermediate : intermediate;
  }

  /** The maps of an expert that stand in one tensor, in the order of their rows. */
  private List<Weight> maps(int expert, boolean first) {
    ExpertWeights.Expert x = weights.expert(expert);
    if (!first) {
      return List.of(x.down());
    }
    return gated ? List.of(x.up(), Objects.requireNonNull(x.gate())) : List.of(x.up());
  }

  private Tensor codes(long rows, long columns, boolean first) {
    boolean packed = scheme.weightDtype(DType.BF16) == DType.I64;
    long width = packed ? columns / 2 : columns;
    Tensor to = tensors.allocate(packed ? DType.U8 : DType.F8_E4M3, experts, rows, width);
    for (int e = 0; e < experts; e++) {
      long at = 0;
      for (Weight w : maps(e, first)) {
        tensors.copy(
            packed ? Mxfp4Weights.bytes(w) : w.values(), to.select(0, e).narrow(0, at, w.out()));
        at += w.out();
      }
    }
    return packed ? Tensor.of(DType.I64, to.memory(), experts, rows, columns / PER_LONG) : to;
  }

  /** F32 {@code [E, rows / 128, columns / 128]}. */
  private Tensor blocks(boolean first) {
    long rows = (first ? rows13() : hidden) / BLOCK;
    long columns = (first ? hidden : intermediate) / BLOCK;
    float[] all = new float[Math.toIntExact(experts * rows * columns)];
    int at = 0;
    for (int e = 0; e < experts; e++) {
      for (Weight w : maps(e, first)) {
        float[] own = floats(w.scales().orElseThrow());
        System.arraycopy(own, 0, all, at, own.length);
        at += own.length;
      }
    }
    return tensors.floats(all, experts, rows, columns);
  }

  private float[] floats(Tensor t) {
    try (Arena arena = Arena.ofConfined()) {
      return tensors.onHost(t, arena).toFloats();
    }
  }

  private Tensor ones() {
    float[] all = new float[experts];
    java.util.Arrays.fill(all, 1);
    return tensors.floats(all, experts);
  }

  /**
   * Scales of groups in the tensor cores' order.
   *
   * @param common the global scale that all maps of an expert are to have, null = they have none
   * @return I32 {@code [E, rows, groups / 4]}: four scales each
   */
  private Tensor groups(boolean first, float @Nullable [] common) {
    long rows = first ? rows13() : hidden;
    long columns = first ? hidden : intermediate;
    long groups = columns / scheme.scheme().scaleColumns();
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment to = arena.allocate(experts * rows * groups, 64);
      for (int e = 0; e < experts; e++) {
        MemorySegment expert = to.asSlice(e * rows * groups, rows * groups);
        long at = 0;
        for (Weight w : maps(e, first)) {
          byte[] anew = common == null ? null : rescaled(numbers.global(w) / common[e]);
          MemorySegment from = tensors.onHost(w.scales().orElseThrow(), arena).segment();
          for (long row = 0; row < w.out(); row++) {
            for (long g = 0; g < groups; g++) {
              byte code = from.get(ValueLayout.JAVA_BYTE, row * groups + g);
              expert.set(
                  ValueLayout.JAVA_BYTE,
                  place(at + row, g, groups),
                  anew == null ? code : anew[Byte.toUnsignedInt(code)]);
            }
          }
          at += w.out();
        }
      }
      return tensors.upload(DType.I32, to, experts, rows, groups / TILE_GROUPS);
    }
  }

  /** {@return where a group's scale stands among those of an expert} */
  static long place(long row, long group, long groups) {
    long tile = row / TILE_ROWS * (groups / TILE_GROUPS) + group / TILE_GROUPS;
    return tile * TILE_BYTES
        + row % LANES * (TILE_BYTES / LANES)
        + row % TILE_ROWS / LANES * TILE_GROUPS
        + group % TILE_GROUPS;
  }

  /** E4M3 codes of numbers that are a factor larger; 1 leaves them as they are. */
  private static byte[] rescaled(float factor) {
    byte[] anew = new byte[1 << Byte.SIZE];
    for (int code = 0; code < anew.length; code++) {
      anew[code] = factor == 1 ? (byte) code : E4m3.of(E4m3.value((byte) code) * factor);
    }
    return anew;
  }

  /**
   * The module has one global scale for gate and up together, so the larger is taken and the scales
   * of the other's groups are rounded once more; of input scales likewise.
   */
  private List<Tensor> nvfp4() {
    float[][] inputs = new float[2][experts];
    float[][] globals = new float[2][experts];
    float[][] products = new float[2][experts];
    for (int p = 0; p < 2; p++) {
      for (int e = 0; e < experts; e++) {
        float input = 0;
        for (Weight w : maps(e, p == 0)) {
          input = Math.max(input, numbers.input(w));
          globals[p][e] = Math.max(globals[p][e], numbers.global(w));
        }
        inputs[p][e] = 1 / input;
        products[p][e] = input * globals[p][e];
      }
    }
    return List.of(
        tensors.floats(inputs[0], experts),
        groups(true, globals[0]),
        tensors.floats(products[0], experts),
        tensors.floats(inputs[1], experts),
        groups(false, globals[1]),
        tensors.floats(products[1], experts));
  }

  /** {@return {@code [E, 2I or I, H]}, four-bit weights sixteen an element} */
  Tensor w13() {
    return w13;
  }

  /** {@return {@code [E, H, I]}, likewise} */
  Tensor w2() {
    return w2;
  }

  /** {@return the module's {@code quant_scales}, in its order} */
  List<Tensor> scales() {
    return scales;
  }
}
