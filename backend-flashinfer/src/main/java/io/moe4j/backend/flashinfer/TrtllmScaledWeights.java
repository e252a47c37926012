package io.moe4j.backend.flashinfer;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.Packing;
import io.moe4j.api.weights.Weight;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.Objects;
import java.util.stream.LongStream;
import org.jspecify.annotations.Nullable;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * A layer's quantised experts, but for FP8 in blocks, as the TRTLLM kernels want them: rows in the
 * order of {@link TrtllmWeights}, whole or in pieces; scales of groups of the same rows in the
 * order of {@link BlockScaledWeights#place}. Widths are padded with zeros to whole tiles. Made on
 * the host, one expert at a time; the tensors are their collection's.
 */
final class TrtllmScaledWeights {
  private static final Logger LOG = LoggerFactory.getLogger(TrtllmScaledWeights.class);

  /** What is taken from an integer's code: as a signed number of four bits it is the other sign. */
  private static final int SIGN = 8;

  private static final int CODE = 15;

  private final ExpertWeights weights;
  private final TrtllmScheme scheme;
  private final DeviceTensors tensors;
  private final long hidden;
  private final long intermediate;
  private final Tensor w13;
  private final @Nullable Tensor w13Scales;
  private final Tensor w2;
  private final @Nullable Tensor w2Scales;
  private final @Nullable Tensor b13;
  private final @Nullable Tensor b2;
  private boolean roundedScales;

  /**
   * @param weights of the scheme, with gates
   * @param scheme a shuffled one, not plain
   * @param biased whether the layer has biases
   * @param tensors where they are made
   */
  TrtllmScaledWeights(
      ExpertWeights weights, TrtllmScheme scheme, boolean biased, DeviceTensors tensors) {
    this.weights = weights;
    this.scheme = scheme;
    this.tensors = tensors;
    this.hidden = scheme.padded(weights.expert(0).up().in());
    this.intermediate = scheme.padded(weights.expert(0).up().out());
    w13 = codes(true);
    boolean grouped = scheme != TrtllmScheme.FP8_TENSOR;
    w13Scales = grouped ? scales(true) : null;
    w2 = codes(false);
    w2Scales = grouped ? scales(false) : null;
    b13 = biased ? biases(true) : null;
    b2 = biased ? biases(false) : null;
    if (roundedScales) {
      LOG.warn(
          "the scales of {} and the layer's other weights are rounded to BF16, by up to 0.2 %: {}"
              + " takes no others",
          weights.expert(0).up().name(), scheme.function());
    }
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
    long rows = rows(first);
    long width = scheme.isPacked() ? columns(first) / 2 : columns(first);
    long[] shape =
        scheme.isInPieces()
            ? new long[] {width / TrtllmWeights.PIECE_BYTES, rows, TrtllmWeights.PIECE_BYTES}
            : new long[] {rows, width};
    Tensor to =
        tensors.allocate(
            type,
            LongStream.concat(LongStream.of(weights.numExperts()), Arrays.stream(shape)).toArray());
    for (int e = 0; e < weights.numExperts(); e++) {
      Weight[] maps = maps(e, first);
      try (Arena arena = Arena.ofConfined()) {
        MemorySegment[] from = all(maps, w -> bytes(w, arena));
        long own = scheme.isPacked() ? Math.ceilDiv(maps[0].in(), 2) : maps[0].in();
        MemorySegment padded = arena.allocate(rows * width, 64);
        eachRow(
            first,
            maps[0],
            (row, map, at) -> {
              if (scheme.isInPieces()) {
                TrtllmWeights.copyRow(from[map], at, own, padded, row, rows);
              } else {
                MemorySegment.copy(from[map], at * own, padded, row * width, own);
              }
            });
        tensors.copy(Tensor.of(type, padded, shape), to.select(0, e));
      }
    }
    return to;
  }

  private MemorySegment bytes(Weight w, Arena arena) {
    return switch (w.scheme().format()) {
      case FP4 -> tensors.onHost(Mxfp4Weights.bytes(w), arena).segment();
      case INT4 -> signed(w, arena);
      default -> tensors.onHost(w.values(), arena).segment();
    };
  }

  /** Integers of four bits, two a byte, the first in the lower half, signed. */
  private MemorySegment signed(Weight w, Arena arena) {
    Tensor words = tensors.onHost(w.values(), arena);
    MemorySegment from = words.segment();
    boolean alongIn = w.packing() == Packing.WORDS_ALONG_IN;
    int perWord = Integer.SIZE / w.scheme().bits();
    long width = Math.ceilDiv(w.in(), 2);
    MemorySegment to = arena.allocate(w.out() * width, 64);
    for (long out = 0; out < w.out(); out++) {
      for (long in = 0; in < w.in(); in++) {
        long row = alongIn ? out : out / perWord;
        long column = alongIn ? in / perWord : in;
        int word = from.getAtIndex(ValueLayout.JAVA_INT_UNALIGNED, row * words.size(1) + column);
        int code = ((word >>> w.packing().shift(out, in, w.scheme().bits())) & CODE) ^ SIGN;
        long at = out * width + in / 2;
        byte other = to.get(ValueLayout.JAVA_BYTE, at);
        to.set(ValueLayout.JAVA_BYTE, at, (byte) (in % 2 == 0 ? code : other | (code << 4)));
      }
    }
    return to;
  }

  private Tensor scales(boolean first) {
    long rows = rows(first);
    long groups = columns(first) / scheme.scheme().scaleColumns();
    boolean wide = scheme.scales() == DType.BF16;
    Tensor to = tensors.allocate(scheme.scales(), weights.numExperts(), rows, groups);
    for (int e = 0; e < weights.numExperts(); e++) {
      Weight[] maps = maps(e, first);
      try (Arena arena = Arena.ofConfined()) {
        Tensor[] from =
            Arrays.stream(maps)
                .map(w -> tensors.onHost(w.scales().orElseThrow(), arena))
                .toArray(Tensor[]::new);
        long own = from[0].size(1);
        MemorySegment placed = arena.allocate(scheme.scales().byteSize(rows * groups), 64);
        eachRow(
            first,
            maps[0],
            (row, map, at) -> {
              for (long g = 0; g < own; g++) {
                long place = BlockScaledWeights.place(row, g, groups);
                if (wide) {
                  short bits = rounded(maps[map], (float) from[map].get(at, g));
                  placed.setAtIndex(ValueLayout.JAVA_SHORT_UNALIGNED, place, bits);
                } else {
                  byte code = from[map].segment().get(ValueLayout.JAVA_BYTE, at * own + g);
                  placed.set(ValueLayout.JAVA_BYTE, place, code);
                }
              }
            });
        tensors.copy(Tensor.of(scheme.scales(), placed, rows, groups), to.select(0, e));
      }
    }
    return to;
  }

  /** A scale of integers in BF16, which is what the kernels take. */
  private short rounded(Weight w, float scale) {
    short bits = Tensor.toBFloat16(scale);
    float taken = Float.intBitsToFloat(bits << Short.SIZE);
    if (Float.isInfinite(taken)) {
      throw new IllegalArgumentException(
          w.name() + ": the scale " + scale + " is too large for BF16, which FlashInfer takes");
    }
    roundedScales |= taken != scale;
    return bits;
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

  /** {@return {@code [E, 2I, H]}, or half as many bytes a row, or in pieces; padded} */
  Tensor w13() {
    return w13;
  }

  /** {@return {@code [E, 2I, H / group]}, or null} */
  @Nullable Tensor w13Scales() {
    return w13Scales;
  }

  /** {@return {@code [E, H, I]}, or half as many bytes a row, or in pieces; padded} */
  Tensor w2() {
    return w2;
  }

  /** {@return {@code [E, H, I / group]}, or null} */
  @Nullable Tensor w2Scales() {
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
