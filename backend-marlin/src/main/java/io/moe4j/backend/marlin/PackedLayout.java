package io.moe4j.backend.marlin;

import io.moe4j.api.config.QuantScheme;
import java.util.Locale;
import java.util.Optional;

/**
 * How the kernels keep a weight {@code [out, in]}: tiles of 16 outputs x 64 inputs, each lane's
 * codes together ({@code widen.cuh}); for each output a channel scale in F32, and where the scheme
 * has groups of inputs the ratio of each group's scale to it in F16 ({@code repack.cu}).
 *
 * @param code what a code is
 * @param groupsAChunk groups of scales in 64 inputs: 1 (then a group may span more), 2 or 4; 0 =
 *     one scale an output, no ratios
 * @param groupShift log2 of the chunks of 64 inputs that share a scale; 0 unless groupsAChunk is 1
 * @param zeroPoints whether zero points are kept beside the ratios: those of an asymmetric scheme,
 *     or the fixed one where kernels for the layout exist only with zero points
 * @param out outputs
 * @param in inputs
 */
record PackedLayout(
    Code code, int groupsAChunk, int groupShift, boolean zeroPoints, long out, long in) {
  /** Outputs of a tile. */
  static final int TILE_ROWS = 16;

  /** Inputs of a chunk. */
  static final int CHUNK = 64;

  private static final int SMALLEST_GROUP = 16;

  /** What a code is; the order is that of {@code Code} in {@code widen.cuh}. */
  enum Code {
    /** Unsigned integers of 4 bits. */
    U4(4),
    /** Unsigned integers of 8 bits. */
    U8(8),
    /** FP8. */
    E4M3(8),
    /** FP4. */
    E2M1(4);

    private final int bits;

    Code(int bits) {
      this.bits = bits;
    }

    int bits() {
      return bits;
    }

    boolean isInteger() {
      return this == U4 || this == U8;
    }
  }

  /**
   * {@return why the kernels cannot keep weights of a scheme, or empty}
   *
   * @param scheme of the weights
   */
  static Optional<String> reasonAgainst(QuantScheme scheme) {
    if (scheme.isNone()) {
      return Optional.of("weights are plain floats, nothing is packed");
    }
    if (codeOf(scheme).isEmpty()) {
      return Optional.of("weights are " + scheme + "; supported: int4, int8, fp8 and fp4 codes");
    }
    int columns = scheme.scaleColumns();
    boolean floats = codeOf(scheme).get() == Code.E4M3;
    int least = floats ? 2 * SMALLEST_GROUP : SMALLEST_GROUP;
    if (columns % least != 0) {
      return Optional.of(
          "a scale serves "
              + columns
              + " inputs ("
              + scheme
              + "), must be a multiple of "
              + least
              + " or all of them");
    }
    return Optional.empty();
  }

  /**
   * {@return the layout of a weight}
   *
   * @param scheme of the weight
   * @param out outputs
   * @param in inputs
   * @throws IllegalArgumentException for a scheme that {@link #reasonAgainst} refuses
   */
  static PackedLayout of(QuantScheme scheme, long out, long in) {
    Optional<String> reason = reasonAgainst(scheme);
    if (reason.isPresent()) {
      throw new IllegalArgumentException(reason.get());
    }
    Code code = codeOf(scheme).orElseThrow();
    int columns = scheme.scaleColumns();
    int groups;
    int shift = 0;
    if (columns == QuantScheme.ALL) {
      // Floats need no ratios. Integers have them for the sake of fewer kernels: one group.
      groups = code == Code.E4M3 ? 0 : code == Code.E2M1 ? 2 : 1;
      shift = groups == 1 ? Long.SIZE - Long.numberOfLeadingZeros(Math.ceilDiv(in, CHUNK) - 1) : 0;
    } else if (columns % CHUNK == 0 && code != Code.E2M1) {
      // Kernels find a chunk's group by a shift: groups of 192 are kept as three of 64.
      groups = 1;
      shift = Integer.numberOfTrailingZeros(columns / CHUNK);
    } else {
      groups = columns % (CHUNK / 2) == 0 ? 2 : 4;
    }
    boolean zeros =
        !scheme.symmetric() || (code == Code.U4 && groups == 4) || (code == Code.U8 && groups > 1);
    return new PackedLayout(code, groups, shift, zeros, out, in);
  }

  /**
   * {@return the same for a weight that lies between others along the inputs}
   *
   * @param total inputs of all, whole groups of each
   */
  PackedLayout widened(long total) {
    return new PackedLayout(code, groupsAChunk, groupShift, zeroPoints, out, total);
  }

  /** {@return a number of inputs that is whole chunks and whole groups, at least {@link #in}} */
  long wholeInputs() {
    long unit = (long) CHUNK << groupShift;
    return Math.ceilDiv(in, unit) * unit;
  }

  private static Optional<Code> codeOf(QuantScheme scheme) {
    return switch (scheme.format()) {
      case INT4 -> Optional.of(Code.U4);
      case INT8 -> Optional.of(Code.U8);
      case FP8 -> Optional.of(Code.E4M3);
      case FP4 -> Optional.of(Code.E2M1);
      default -> Optional.empty();
    };
  }

  /** {@return tiles along the outputs} */
  long rowTiles() {
    return Math.ceilDiv(out, TILE_ROWS);
  }

  /** {@return chunks along the inputs} */
  long chunks() {
    return Math.ceilDiv(in, CHUNK);
  }

  /** {@return bytes of the codes} */
  long codeBytes() {
    return rowTiles() * chunks() * TILE_ROWS * CHUNK * code.bits() / Byte.SIZE;
  }

  /** {@return groups of scales along the inputs, padded inputs included} */
  long groups() {
    return groupsAChunk == 1 ? Math.ceilDiv(chunks(), 1L << groupShift) : chunks() * groupsAChunk;
  }

  /** {@return bytes of the ratios, and of the zero points where there are any} */
  long ratioBytes() {
    return rowTiles() * TILE_ROWS * groups() * Short.BYTES;
  }

  /** {@return bytes of the channel scales} */
  long channelBytes() {
    return rowTiles() * TILE_ROWS * Float.BYTES;
  }

  /** {@return the kernels' name of the format, as in {@code formats.cuh}} */
  String formatName() {
    return code.name().toLowerCase(Locale.ROOT) + "_" + groupsAChunk + (zeroPoints ? "z" : "");
  }

  /** {@return the zero point of a symmetric integer code} */
  int fixedZeroPoint() {
    return 1 << (code.bits() - 1);
  }

  /**
   * {@return where the ratio of an output's group lies, in F16 elements; zero points lie alike}
   *
   * @param row output
   * @param group group, in units of {@link #groups}
   */
  long ratioIndex(long row, long group) {
    long perChunk = groupsAChunk;
    long place = row / TILE_ROWS * (groups() / perChunk) + group / perChunk;
    return ((place * 8 + row % 8) * perChunk + group % perChunk) * 2 + row % TILE_ROWS / 8;
  }
}
