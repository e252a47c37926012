package io.moe4j.backend.flashinfer;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.Weight;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * A layer's experts with a scale for 32 weights of a row, as the TRTLLM kernels want them: rows in
 * the order of {@link TrtllmWeights}, whole; scales of the same rows in the order of {@link
 * BlockScaledWeights#place}. Widths are padded with zeros to whole tiles. Made on the host, one
 * expert at a time; the tensors are their collection's.
 */
final class TrtllmScaledWeights {
  private static final int GROUP = 32;

  private final ExpertWeights weights;
  private final TrtllmScheme scheme;
  private final DeviceTensors tensors;
  private final long hidden;
  private final long intermediate;
  private final Tensor w13;
  private final Tensor w13Scales;
  private final Tensor w2;
  private final Tensor w2Scales;
  private final @Nullable Tensor b13;
  private final @Nullable Tensor b2;

  /**
   * @param weights of the scheme, with gates
   * @param scheme one with scales
   * @param biased whether the layer has biases
   * @param tensors where they are made
   */
  TrtllmScaledWeights(
      ExpertWeights weights, TrtllmScheme scheme, boolean biased, DeviceTensors tensors) {
    this.weights = weights;
    this.scheme = scheme;
    this.tensors = tensors;
    this.hidden = TrtllmWeights.padded(weights.expert(0).up().in());
    this.intermediate = TrtllmWeights.padded(weights.expert(0).up().out());
    w13 = codes(true);
    w13Scales = scales(true);
    w2 = codes(false);
    w2Scales = scales(false);
    b13 = biased ? biases(true) : null;
    b2 = biased ? biases(false) : null;
  }

  private long rows(boolean first) {
    return first ? 2 * intermediate : hidden;
  }

  private long columns(boolean first) {
    return first ? hidden : intermediate;
  }

  /** Rows of a product's matrix, as bytes of each of its maps: up and gate alternate. */
  private interface Rows {
    MemorySegment of(Weight weight);
  }

  /**
   * Puts rows where they stand.
   *
   * @param place told each row of the kernels, the map it comes from (0 = up or down, 1 = gate) and
   *     that map's row
   */
  private void eachRow(boolean first, Weight map, RowPlace place) {
    for (long row = 0; row < rows(first); row++) {
      long from = TrtllmWeights.rowBefore(row);
      int which = first ? (int) (from % 2) : 0;
      long own = first ? from / 2 : from;
      if (own < map.out()) {
        place.put(row, which, own);
      }
    }
  }

  private interface RowPlace {
    void put(long row, int map, long own);
  }

  private Weight[] maps(int expert, boolean first) {
    ExpertWeights.Expert x = weights.expert(expert);
    return first
        ? new Weight[] {x.up(), Objects.requireNonNull(x.gate())}
        : new Weight[] {x.down()};
  }

  private static MemorySegment[] all(Weight[] maps, Rows rows) {
    MemorySegment[] bytes = new MemorySegment[maps.length];
    for (int i = 0; i < maps.length; i++) {
      bytes[i] = rows.of(maps[i]);
    }
    return bytes;
  }

  private Tensor codes(boolean first) {
    DType type = scheme.isPacked() ? DType.U8 : DType.F8_E4M3;
    long width = scheme.isPacked() ? columns(first) / 2 : columns(first);
    Tensor to = tensors.allocate(type, weights.numExperts(), rows(first), width);
    for (int e = 0; e < weights.numExperts(); e++) {
      Weight[] maps = maps(e, first);
      try (Arena arena = Arena.ofConfined()) {
        MemorySegment[] from =
            all(
                maps,
                w ->
                    tensors
                        .onHost(scheme.isPacked() ? Mxfp4Weights.bytes(w) : w.values(), arena)
                        .segment());
        long own = scheme.isPacked() ? maps[0].in() / 2 : maps[0].in();
        MemorySegment padded = arena.allocate(rows(first) * width, 64);
        eachRow(
            first,
            maps[0],
            (row, map, at) -> MemorySegment.copy(from[map], at * own, padded, row * width, own));
        tensors.copy(Tensor.of(type, padded, rows(first), width), to.select(0, e));
      }
    }
    return to;
  }

  private Tensor scales(boolean first) {
    long groups = columns(first) / GROUP;
    Tensor to = tensors.allocate(scheme.scales(), weights.numExperts(), rows(first), groups);
    for (int e = 0; e < weights.numExperts(); e++) {
      Weight[] maps = maps(e, first);
      try (Arena arena = Arena.ofConfined()) {
        MemorySegment[] from =
            all(maps, w -> tensors.onHost(w.scales().orElseThrow(), arena).segment());
        long own = maps[0].in() / GROUP;
        MemorySegment placed = arena.allocate(rows(first) * groups, 64);
        eachRow(
            first,
            maps[0],
            (row, map, at) -> {
              for (long g = 0; g < own; g++) {
                placed.set(
                    ValueLayout.JAVA_BYTE,
                    BlockScaledWeights.place(row, g, groups),
                    from[map].get(ValueLayout.JAVA_BYTE, at * own + g));
              }
            });
        tensors.copy(Tensor.of(scheme.scales(), placed, rows(first), groups), to.select(0, e));
      }
    }
    return to;
  }

  private Tensor biases(boolean first) {
    float[] placed = new float[Math.toIntExact(weights.numExperts() * rows(first))];
    for (int e = 0; e < weights.numExperts(); e++) {
      ExpertWeights.Expert x = weights.expert(e);
      float[][] from =
          first
              ? new float[][] {floats(x.upBias()), floats(x.gateBias())}
              : new float[][] {floats(x.downBias())};
      int base = Math.toIntExact(e * rows(first));
      eachRow(
          first,
          maps(e, first)[0],
          (row, map, at) ->
              placed[base + (int) row] = from[map].length == 0 ? 0 : from[map][(int) at]);
    }
    return tensors.floats(placed, weights.numExperts(), rows(first));
  }

  /** Nothing for a bias that is not there: it adds nothing. */
  private float[] floats(@Nullable Tensor bias) {
    if (bias == null) {
      return new float[0];
    }
    try (Arena arena = Arena.ofConfined()) {
      return tensors.onHost(bias, arena).toFloats();
    }
  }

  /** {@return {@code [E, 2I, H]}, or half as many bytes a row; padded} */
  Tensor w13() {
    return w13;
  }

  /** {@return {@code [E, 2I, H / 32]}} */
  Tensor w13Scales() {
    return w13Scales;
  }

  /** {@return {@code [E, H, I]}, or half as many bytes a row; padded} */
  Tensor w2() {
    return w2;
  }

  /** {@return {@code [E, H, I / 32]}} */
  Tensor w2Scales() {
    return w2Scales;
  }

  /** {@return F32 {@code [E, 2I]} in the order of the rows, or null} */
  @Nullable Tensor b13() {
    return b13;
  }

  /** {@return F32 {@code [E, H]} in the order of the rows, or null} */
  @Nullable Tensor b2() {
    return b2;
  }
}
