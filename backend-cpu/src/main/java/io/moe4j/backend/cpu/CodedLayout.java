package io.moe4j.backend.cpu;

import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.QuantScheme.Format;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.Packing;
import io.moe4j.api.weights.Weight;
import io.moe4j.backend.cpu.ffi.CallStruct;
import io.moe4j.backend.cpu.ffi.CodedStruct;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * How matrices of one scheme lie in packed blocks of codes ({@code struct moe_coded}). Codes keep
 * their bits and scales their dtype, so a block takes what the checkpoint takes.
 *
 * @param scheme of all of them, without activations
 * @param scales dtype of scales
 * @param unsigned whether integers are unsigned
 * @param zeroOffset what is added to a stored zero point
 * @param columns of the matrices
 */
record CodedLayout(
    QuantScheme scheme, DType scales, boolean unsigned, int zeroOffset, int columns) {
  /** Values of k that the kernels sum before they scale, at most. */
  private static final int STRETCH = 128;

  /** Codes of a packed word, and what groups are whole numbers of. */
  private static final int STEP = 8;

  /** Columns of 255 times 127 whose sum fits an int32. */
  private static final int MAX_INT8_COLUMNS = 1 << 16;

  /** Raw E4M3 numbers are read as binary16 ones, which are smaller by this. */
  private static final double E4M3_FACTOR = 256;

  /**
   * {@return why the kernels in C cannot read some matrices; empty if they can}
   *
   * @param all of one shape, none of them plain
   */
  static String refusal(List<Weight> all) {
    Weight first = all.getFirst();
    CodedLayout layout = of(first);
    for (Weight w : all) {
      if (!of(w).equals(layout)) {
        return first + " and " + w + " are not stored alike";
      }
      if (w.scheme().actOrder() && order(w) == null) {
        return w + " has a group index that is no shuffle of its groups";
      }
      if (w.zeroPacking() == Packing.DENSE && !w.scheme().symmetric() && !areCodes(w)) {
        return w + " has zero points that are no codes";
      }
    }
    int group = layout.group();
    return group % STEP == 0 || group >= layout.columns
        ? ""
        : first + " has groups that are no multiple of " + STEP;
  }

  /** {@return the layout of a matrix for which there is no {@link #refusal}} */
  static CodedLayout of(Weight w) {
    boolean integer = w.scheme().format() == Format.INT4 || w.scheme().format() == Format.INT8;
    return new CodedLayout(
        w.scheme().weightOnly(),
        w.scales().orElseThrow().dtype(),
        integer && w.packing() != Packing.DENSE,
        w.zeroOffset(),
        Math.toIntExact(w.in()));
  }

  /**
   * {@return the columns of a matrix with act-order, group after group; null if some group has more
   * or fewer of them than it would have without}
   *
   * @param w with a group index
   */
  static int @Nullable [] order(Weight w) {
    int[] index = w.groupIndex().orElseThrow().toInts();
    int size = w.scheme().scaleColumns();
    int[] next = new int[Math.toIntExact(w.scheme().scaleColumnCount(w.in()))];
    for (int g = 0; g < next.length; g++) {
      next[g] = g * size;
    }
    int[] order = new int[index.length];
    for (int i = 0; i < index.length; i++) {
      int at = next[index[i]]++;
      if (at >= index.length || at / size != index[i]) {
        return null;
      }
      order[at] = i;
    }
    return order;
  }

  private static boolean areCodes(Weight w) {
    Tensor z = w.zeroPoints().orElseThrow();
    for (long o = 0; o < z.size(0); o++) {
      for (long g = 0; g < z.size(1); g++) {
        double v = z.get(o, g);
        if (v < 0 || v >= 1 << w.scheme().bits()) {
          return false;
        }
      }
    }
    return true;
  }

  private static int padded(int n) {
    return Math.ceilDiv(n, CallStruct.BLOCK) * CallStruct.BLOCK;
  }

  private static long align(long n) {
    return (n + 63) & -64;
  }

  private int group() {
    int size = scheme.scaleColumns();
    return size == QuantScheme.ALL ? Math.max(padded(columns), 1) : size;
  }

  /** A group that takes all columns takes the padding behind them, too. */
  private int packedGroup() {
    return group() >= columns ? padded(columns) : group();
  }

  private int stretch() {
    int group = packedGroup();
    if (group == padded(columns)) {
      return STRETCH;
    }
    int s = STRETCH;
    while (group % s != 0) {
      s -= STEP;
    }
    return s;
  }

  private int groups() {
    return Math.ceilDiv(padded(columns), packedGroup());
  }

  private int scaleLanes() {
    int rows = scheme.scaleRows();
    return rows == QuantScheme.ALL || rows % CallStruct.HALF == 0 ? 2 : CallStruct.BLOCK;
  }

  private long scalesAt() {
    return align((long) padded(columns) * CallStruct.BLOCK * scheme.bits() / 8);
  }

  private long zerosAt() {
    return scalesAt() + align((long) groups() * scaleLanes() * (scales.bits() / 8));
  }

  /** {@return whether every value of a code, less its zero point, is one table's or type's} */
  boolean takesBf16Rows() {
    return scheme.symmetric();
  }

  /** {@return whether units that multiply int8 can; no sum of theirs is larger than an int32} */
  boolean canTakeInt8Rows() {
    return (scheme.format() == Format.INT4 || scheme.format() == Format.INT8)
        && padded(columns) <= MAX_INT8_COLUMNS;
  }

  /** {@return bytes from one row of int8, with its sums and its scale, to the next} */
  long int8RowBytes() {
    int run = scheme.format() == Format.INT4 ? stretch() : packedGroup();
    long bytes = align(padded(columns) + 4L * (Math.ceilDiv(padded(columns), run) + 1));
    // A multiple of 4096 would put all rows of a column into the same few lines of a cache.
    return bytes % 4096 == 0 ? bytes + 64 : bytes;
  }

  /** {@return bytes of a block of 32 outputs} */
  long blockBytes() {
    return scheme.symmetric()
        ? zerosAt()
        : zerosAt() + align((long) groups() * CallStruct.BLOCK * scheme.bits() / 8);
  }

  /** {@return what a matrix's values are multiplied with besides their scales} */
  static float factor(Weight w) {
    double global = w.globalScale().map(t -> t.toDoubles()[0]).orElse(1.0);
    double factor = w.dividedByGlobal() ? 1 / global : global;
    factor *= w.scheme().format() == Format.FP4 ? 0.5 : 1;
    factor *= w.scheme().format() == Format.FP8 ? E4M3_FACTOR : 1;
    factor *= w.scales().orElseThrow().dtype() == DType.F8_E4M3 ? E4M3_FACTOR : 1;
    return (float) factor;
  }

  /**
   * {@return a {@code struct moe_coded}}
   *
   * @param factors F32 {@code [expert][2]}
   * @param int8Rows whether blocks are for rows of int8
   * @param arena where it goes
   */
  MemorySegment struct(MemorySegment factors, boolean int8Rows, Arena arena) {
    boolean words8 = scheme.format() == Format.INT8 && unsigned;
    CodedStruct s =
        CodedStruct.coded(arena)
            .put(
                switch (scheme.format()) {
                  case INT8 -> int8Rows ? 3L : 1L;
                  case FP8 -> 2L;
                  default -> 0L;
                })
            .put((long) stretch())
            .put((long) packedGroup())
            .put((long) groups())
            .put(
                switch (scales) {
                  case F32 -> 0L;
                  case BF16 -> 1L;
                  case F16 -> 2L;
                  case F8_E8M0 -> 3L;
                  default -> 4L;
                })
            .put((long) scaleLanes())
            .put(scalesAt())
            .put(scheme.symmetric() ? 0L : zerosAt())
            .put((long) zeroOffset - (words8 ? 128 : 0))
            .put(factors.address());
    for (int code = 0; code < 16; code++) {
      int value = scheme.symmetric() ? code - 8 : code;
      s.put((byte) (scheme.format() == Format.FP4 ? Math.round(2 * Float4.VALUES[code]) : value));
    }
    return s.complete();
  }

  /**
   * A {@code struct moe_source}: where a matrix lies. Its tensors are read in place if they are in
   * memory that nobody can take away; copies otherwise.
   *
   * @param w the matrix
   * @param order int32, by packed column which one of the matrix it is; NULL = the same
   * @param arena where the struct and copies go
   */
  static MemorySegment source(Weight w, MemorySegment order, Arena arena) {
    int bits = w.scheme().bits();
    Tensor codes = w.values();
    Tensor scales = w.scales().orElseThrow();
    Tensor zeros = w.zeroPoints().orElse(null);
    int rows = w.scheme().scaleRows();
    long scaleBytes = scales.dtype().bits() / 8;
    boolean flip = w.scheme().format() == Format.INT8 && w.packing() != Packing.DENSE;
    CodedStruct s =
        CodedStruct.source(arena)
            .put(bytes(codes, arena).address())
            .put(codes.stride(0) * fields(codes, bits))
            .put(codes.stride(1) * fields(codes, bits))
            .put(lie(w.packing()))
            .put(order.address())
            .put(flip ? 0x80L : 0L)
            .put(bytes(scales, arena).address())
            .put(scales.stride(0) * scaleBytes)
            .put(scales.stride(1) * scaleBytes)
            .put(rows == QuantScheme.ALL ? Long.MAX_VALUE : rows);
    if (zeros == null) {
      s.put(0L).put(0L).put(0L).put(0L).put(0L);
    } else {
      int zeroBits = w.zeroPacking() == Packing.DENSE ? 8 : bits;
      s.put(bytes(zeros, arena).address())
          .put(zeros.stride(0) * fields(zeros, zeroBits))
          .put(zeros.stride(1) * fields(zeros, zeroBits))
          .put(lie(w.zeroPacking()))
          .put((long) zeroBits);
    }
    return s.put(w.scheme().scaleColumnCount(w.in())).complete();
  }

  /** {@return fields from one element to the next} */
  private static long fields(Tensor t, int bits) {
    return t.dtype().bits() / bits;
  }

  private static long lie(Packing packing) {
    return switch (packing) {
      case DENSE -> 0;
      case WORDS_ALONG_IN -> 1;
      case WORDS_ALONG_OUT -> 2;
      case WORDS_ALONG_OUT_AWQ -> 3;
    };
  }

  /** Exactly the bytes from the first element to the last, so that C reads nothing else. */
  private static MemorySegment bytes(Tensor t, Arena arena) {
    MemorySegment s = Rows.segment(t).asSlice(t.byteOffset(), span(t));
    return s.isNative() && !s.isMapped() ? s : arena.allocate(s.byteSize(), 64).copyFrom(s);
  }

  private static long span(Tensor t) {
    long last = (t.size(0) - 1) * t.stride(0) + (t.size(1) - 1) * t.stride(1);
    return ((last + 1) * t.dtype().bits() + 7) / 8;
  }

  /**
   * Tells the system that the pages of a read-only mapped matrix are not needed any more: packed
   * blocks stand in for them.
   *
   * @param w the matrix
   */
  static void letGo(Weight w) {
    for (Tensor t :
        List.of(w.values(), w.scales().orElseThrow(), w.zeroPoints().orElse(w.values()))) {
      MemorySegment s = Rows.segment(t);
      if (s.isMapped() && s.isReadOnly()) {
        s.asSlice(t.byteOffset(), span(t)).unload();
      }
    }
  }
}
