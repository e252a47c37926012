package io.moe4j.backend.cpu;

import static io.moe4j.backend.cpu.ffi.CallStruct.BLOCK;
import static io.moe4j.backend.cpu.ffi.CallStruct.HALF;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.weights.Weight;
import io.moe4j.backend.cpu.ffi.CallStruct;
import io.moe4j.backend.cpu.ffi.HugeMemory;
import io.moe4j.backend.cpu.ffi.NativeKernels;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.Optional;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicIntegerArray;
import org.jspecify.annotations.Nullable;

/**
 * One side of some MLPs, w13 or w2, in packed blocks of 32 outputs: 16 outputs of a first matrix
 * and 16 of a second one, or 32 of one. Plain blocks, or blocks of codes.
 */
final class PackedSide {
  private final Matrix[] first;
  private final Matrix[] second;
  private final boolean paired;
  private final int rows;
  private final int columns;

  /** Outputs of a matrix in one block. */
  private final int width;

  private final @Nullable DType plain;
  private final @Nullable CodedLayout coded;
  private final boolean int8Rows;

  /** Empty until {@link #pack}. */
  private MemorySegment memory = MemorySegment.NULL;

  private MemorySegment struct = MemorySegment.NULL;

  /** int32 {@code [expert][padded columns]}: packed columns of matrices with act-order. */
  private MemorySegment order = MemorySegment.NULL;

  /**
   * @param gate by expert; null where a block has outputs of one matrix
   * @param other by expert; of {@code gate}'s shape
   * @param int8 whether rows become int8 where that is possible
   */
  PackedSide(Matrix @Nullable [] gate, Matrix[] other, boolean int8) {
    paired = gate != null;
    first = gate == null ? other : gate;
    second = other;
    rows = second[0].rows();
    columns = second[0].cols();
    width = paired ? HALF : BLOCK;
    plain = common(all()).orElse(null);
    coded =
        plain == null && refusal().isEmpty()
            ? CodedLayout.of(((CodedRows) second[0]).weight())
            : null;
    int8Rows = int8 && coded != null && coded.canTakeInt8Rows();
  }

  private List<Matrix> all() {
    List<Matrix> all = new ArrayList<>(Arrays.asList(second));
    if (paired) {
      all.addAll(Arrays.asList(first));
    }
    return all;
  }

  /** {@return the dtype of plain matrices; empty if they differ or some are in codes} */
  private static Optional<DType> common(List<Matrix> all) {
    List<DType> types =
        all.stream().filter(Rows.class::isInstance).map(m -> ((Rows) m).type()).distinct().toList();
    boolean coded = all.stream().anyMatch(CodedRows.class::isInstance);
    return types.size() == 1 && !coded ? Optional.of(types.getFirst()) : Optional.empty();
  }

  /** {@return why the kernels in C cannot read these matrices; empty if they can} */
  String refusal() {
    List<Matrix> all = all();
    if (common(all).isPresent()) {
      return "";
    }
    List<Weight> weights = new ArrayList<>();
    for (Matrix m : all) {
      if (!(m instanceof CodedRows rows)) {
        return "plain weights of several dtypes, or beside quantised ones";
      }
      weights.add(rows.weight());
    }
    String refusal = CodedLayout.refusal(weights);
    return refusal.isEmpty() && paired ? orderRefusal() : refusal;
  }

  /** Gate and up of an expert read the same rows, so they need one order. */
  private String orderRefusal() {
    for (int e = 0; e < second.length; e++) {
      Weight w0 = ((CodedRows) first[e]).weight();
      Weight w1 = ((CodedRows) second[e]).weight();
      if (w0.scheme().actOrder() && !Arrays.equals(CodedLayout.order(w0), CodedLayout.order(w1))) {
        return w0 + " and " + w1 + " have different group indices";
      }
    }
    return "";
  }

  private static int padded(int n) {
    return Math.ceilDiv(n, BLOCK) * BLOCK;
  }

  /** {@return blocks of an expert} */
  int blocks() {
    return padded(rows) / width;
  }

  /** {@return bytes of a block} */
  long blockBytes() {
    return coded != null
        ? coded.blockBytes()
        : (long) BLOCK * padded(columns) * (plain == null ? 0 : plain.bits()) / 8;
  }

  /** {@return bytes of an expert} */
  long expertBytes() {
    return blocks() * blockBytes();
  }

  /** {@return bytes of all experts} */
  long bytes() {
    return second.length * expertBytes();
  }

  /** {@return dtype of plain blocks; null for codes} */
  @Nullable DType plain() {
    return plain;
  }

  /** {@return whether units that multiply bf16 can read these blocks} */
  boolean takesBf16Rows() {
    return coded == null ? plain == DType.BF16 : coded.takesBf16Rows();
  }

  /** {@return whether these blocks are made for rows of int8} */
  boolean takesInt8Rows() {
    return int8Rows;
  }

  /**
   * {@return bytes from one copy of a row, as products read it, to the next; 0 = rows are not
   * copied}
   *
   * @param stride of the rows themselves
   */
  long copyStride(long stride) {
    return int8Rows && coded != null ? coded.int8RowBytes() : isOrdered() ? stride : 0;
  }

  /** {@return the number of the blocks' type in moe.h} */
  int type() {
    return plain == null ? CallStruct.CODED : CallStruct.code(plain);
  }

  /** {@return where packed blocks are} */
  long address() {
    return memory.address();
  }

  /** {@return where the {@code struct moe_coded} is; 0 for plain blocks} */
  long structAddress() {
    return struct.address();
  }

  /** {@return whether packed columns have an order of their own} */
  boolean isOrdered() {
    return coded != null && coded.scheme().actOrder();
  }

  /** {@return where that order is; 0 without} */
  long orderAddress() {
    return order.address();
  }

  /**
   * Packs.
   *
   * @param kernels that do it
   * @param team whose threads do it, and first touch what they will read
   * @param arena where packed blocks go
   * @return whether it worked; not if a code or a scale is not a number, which blocks of codes
   *     cannot say
   */
  boolean pack(NativeKernels kernels, ThreadTeam team, Arena arena) {
    memory = HugeMemory.allocate(bytes(), arena);
    if (coded == null && all().stream().allMatch(m -> ((Rows) m).isOneRowOfZeros())) {
      return true; // fresh memory is that already; untouched, it takes none
    }
    if (coded == null) {
      int[] behind = behind(team.nodes(), blocks());
      team.run((tile, _) -> packPlain(kernels, ofNodes(tile, behind)), behind, true);
      all().forEach(m -> ((Rows) m).letGo());
      return true;
    }
    MemorySegment factors = arena.allocate(8L * second.length, 64);
    for (int e = 0; e < second.length; e++) {
      factors.setAtIndex(
          ValueLayout.JAVA_FLOAT, 2L * e, CodedLayout.factor(((CodedRows) first[e]).weight()));
      factors.setAtIndex(
          ValueLayout.JAVA_FLOAT, 2L * e + 1, CodedLayout.factor(((CodedRows) second[e]).weight()));
    }
    struct = coded.struct(factors, int8Rows, arena);
    if (isOrdered()) {
      order = arena.allocate(4L * second.length * padded(columns), 64);
      for (int e = 0; e < second.length; e++) {
        putOrder(e);
      }
    }
    AtomicBoolean bad = new AtomicBoolean();
    int nodes = team.nodes();
    AtomicIntegerArray parts = new AtomicIntegerArray(second.length);
    team.run(
        (tile, _) -> {
          int e = tile % second.length;
          int n = tile / second.length;
          int from = NodeShare.first(blocks(), nodes, n);
          if (!packCoded(kernels, e, from, NodeShare.first(blocks(), nodes, n + 1))) {
            bad.set(true);
          } else if (parts.incrementAndGet(e) == nodes) {
            CodedLayout.letGo(((CodedRows) first[e]).weight());
            CodedLayout.letGo(((CodedRows) second[e]).weight());
          }
        },
        behind(nodes, nodes),
        true);
    return !bad.get();
  }

  /** Tiles of each node: some parts of each expert. */
  private int[] behind(int nodes, int parts) {
    int[] behind = new int[nodes];
    for (int n = 0; n < nodes; n++) {
      behind[n] = second.length * NodeShare.first(parts, nodes, n + 1);
    }
    return behind;
  }

  /** {@return which block of all a tile is, where tiles of a node follow those of another} */
  private int ofNodes(int tile, int[] behind) {
    int n = 0;
    while (tile >= behind[n]) {
      n++;
    }
    int first = NodeShare.first(blocks(), behind.length, n);
    int each = NodeShare.first(blocks(), behind.length, n + 1) - first;
    int i = tile - (n == 0 ? 0 : behind[n - 1]);
    return i / each * blocks() + first + i % each;
  }

  private MemorySegment orderOf(int e) {
    return isOrdered()
        ? order.asSlice(4L * e * padded(columns), 4L * padded(columns))
        : MemorySegment.NULL;
  }

  /** Columns of the matrix, then those that pad it. */
  private void putOrder(int e) {
    int[] columnsInOrder =
        Objects.requireNonNull(CodedLayout.order(((CodedRows) second[e]).weight()));
    MemorySegment to = orderOf(e);
    for (int i = 0; i < padded(columns); i++) {
      to.setAtIndex(ValueLayout.JAVA_INT, i, i < columns ? columnsInOrder[i] : i);
    }
  }

  private int valid(int row) {
    return Math.clamp(rows - row, 0, HALF);
  }

  /** Where the block's second half begins in its matrix. */
  private int secondRow(int row) {
    return paired ? row : row + HALF;
  }

  private void packPlain(NativeKernels kernels, int tile) {
    int row = tile % blocks() * width;
    int row1 = secondRow(row);
    Rows m0 = (Rows) first[tile / blocks()];
    Rows m1 = (Rows) second[tile / blocks()];
    try (Arena arena = Arena.ofConfined()) {
      kernels.pack(
          memory.asSlice(tile * blockBytes(), blockBytes()).address(),
          m0.type(),
          columns,
          padded(columns),
          FileMemory.read(stretch(m0, row), arena),
          m0.stride(),
          valid(row),
          FileMemory.read(stretch(m1, row1), arena),
          m1.stride(),
          valid(row1));
    }
  }

  /** Exactly what is read, so that reading more would be noticed here. */
  private MemorySegment stretch(Rows m, int row) {
    int n = valid(row);
    return n == 0
        ? MemorySegment.NULL
        : m.segment()
            .asSlice(
                m.offset() + row * m.stride(),
                (n - 1) * m.stride() + (long) m.cols() * m.elementBytes());
  }

  private boolean packCoded(NativeKernels kernels, int e, int from, int to) {
    Weight w0 = ((CodedRows) first[e]).weight();
    Weight w1 = ((CodedRows) second[e]).weight();
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment m1 = CodedLayout.source(w1, orderOf(e), arena);
      MemorySegment m0 = paired ? CodedLayout.source(w0, orderOf(e), arena) : m1;
      for (int b = from; b < to; b++) {
        int row = b * width;
        int row1 = secondRow(row);
        long at = e * expertBytes() + b * blockBytes();
        boolean all =
            kernels.packCoded(
                memory.asSlice(at, blockBytes()).address(),
                struct,
                columns,
                padded(columns),
                m0,
                row,
                valid(row),
                m1,
                row1,
                valid(row1));
        if (!all) {
          return false;
        }
      }
    }
    return true;
  }
}
