package io.moe4j.lora.cuda;

import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaStream;
import io.moe4j.cuda.DeviceBuffer;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.atomic.AtomicReferenceArray;
import org.jspecify.annotations.Nullable;

/**
 * The device's view of one layer's slots: for every slot and target where the factors lie, as the
 * struct {@code Factor} of {@code common.cuh}. Factors are read where they are; those whose rank or
 * layout the matrix instructions cannot read are packed once into memory of their own, so a slot
 * takes the memory of its adapter's own ranks, rounded up to 8.
 *
 * <p>A row is written when a context first uses the slot with another adapter, on a stream of its
 * own, behind the arrival of the factors and whatever read the slot before ({@link
 * MoeLoraContext#awaitFactors}). Calls wait for the row on the device, the host never. Any number
 * of threads may {@link #update} at once.
 */
final class FactorTable implements AutoCloseable {
  /** Columns of the table; gate and up side by side. Another order needs other kernels. */
  static final List<LoraTarget> COLUMNS =
      List.of(
          LoraTarget.GATE,
          LoraTarget.UP,
          LoraTarget.DOWN,
          LoraTarget.SHARED_GATE,
          LoraTarget.SHARED_UP,
          LoraTarget.SHARED_DOWN,
          LoraTarget.SHARED_EXPERT_GATE,
          LoraTarget.LATENT_IN,
          LoraTarget.LATENT_OUT);

  private static final int TARGETS = 9;
  private static final int FACTOR_BYTES = 48;
  private static final int ROW_BYTES = TARGETS * FACTOR_BYTES;
  private static final int VECTOR = 8;
  private static final int ALIGNMENT = 16;
  private static final int PACK_THREADS = 256;
  private static final ValueLayout.OfLong LONG = ValueLayout.JAVA_LONG_UNALIGNED;
  private static final ValueLayout.OfInt INT = ValueLayout.JAVA_INT_UNALIGNED;

  /** What a launch must know of one target in all slots. */
  record Use(int inFeatures, int outFeatures, int types, int maxRank) {
    private static final Use NONE = new Use(0, 0, 0, 0);

    boolean has(int type) {
      return (types & 1 << type) != 0;
    }
  }

  /** What a launch must know of all slots; immutable. */
  static final class Summary {
    private final List<Use> uses;
    private final int[][] ranks;
    private final int[][] types;
    private final int adapters;
    private final int experts;

    Summary(List<Use> uses, int[][] ranks, int[][] types, int adapters, int experts) {
      this.uses = uses;
      this.ranks = ranks;
      this.types = types;
      this.adapters = adapters;
      this.experts = experts;
    }

    /** By column. */
    List<Use> uses() {
      return uses;
    }

    /** Slots with factors. */
    int adapters() {
      return adapters;
    }

    /** Experts that routed factors tell apart, 1 = none. */
    int experts() {
      return experts;
    }

    /** Most ranks of a row of one or two targets whose factors have a type, each padded to 16. */
    int columns(int target, int slices, int type) {
      int most = 0;
      for (int s = 0; s < ranks.length; s++) {
        int columns = 0;
        for (int t = target; t < target + slices; t++) {
          columns += types[s][t] == type ? Math.ceilDiv(ranks[s][t], 16) * 16 : 0;
        }
        most = Math.max(most, columns);
      }
      return most;
    }
  }

  /** A factor as kernels read it. */
  private record Placed(long address, long expertStride, long rowStride) {}

  private final CudaDevice device;
  private final LoraKernels kernels;
  private final CudaStream side;
  private final DeviceBuffer table;
  private final AtomicReferenceArray<@Nullable LoraLayer> rows;
  // Behind the writing of a row, until that is seen to be done.
  private final AtomicReferenceArray<Device.@Nullable Fence> pending;
  private final List<List<DeviceBuffer>> packed = new ArrayList<>();
  private volatile Summary summary;

  /**
   * @param side a stream on which nothing else runs
   */
  FactorTable(CudaDevice device, LoraKernels kernels, CudaStream side, int slots) {
    this.device = device;
    this.kernels = kernels;
    this.side = side;
    this.rows = new AtomicReferenceArray<>(slots);
    this.pending = new AtomicReferenceArray<>(slots);
    this.table = device.allocate((long) slots * ROW_BYTES);
    for (int s = 0; s < slots; s++) {
      packed.add(List.of());
    }
    device.fill(table.tensor(DType.U8, (long) slots * ROW_BYTES), 0, side);
    side.synchronize();
    List<Use> none = java.util.Collections.nCopies(TARGETS, Use.NONE);
    summary = new Summary(none, new int[slots][TARGETS], new int[slots][TARGETS], 0, 1);
  }

  long address() {
    return table.memory().address();
  }

  int slots() {
    return rows.length();
  }

  Summary summary() {
    return summary;
  }

  /** Whether every slot that the context uses stands in the table as the context has it. */
  @SuppressWarnings("ReferenceEquality") // equal factors may lie elsewhere
  boolean matches(MoeLoraContext context) {
    for (int s = 0; s < rows.length(); s++) {
      if (context.uses(s) && rows.get(s) != context.slot(s)) {
        return false;
      }
    }
    return true;
  }

  /** Writes the rows that differ, and makes a stream wait for those that the context uses. */
  void update(MoeLoraContext context, DeviceStream stream) {
    if (!matches(context)) {
      write(context, stream);
    }
    for (int s = 0; s < rows.length(); s++) {
      Device.Fence fence = pending.get(s);
      if (fence != null && context.uses(s) && !fence.makeWait(stream)) {
        pending.compareAndSet(s, fence, null);
      }
    }
  }

  @SuppressWarnings("ReferenceEquality")
  private synchronized void write(MoeLoraContext context, DeviceStream stream) {
    if (CudaStream.isCapturing(stream)) {
      throw new IllegalStateException(
          "adapters have come into slots since the last forward or refresh, which cannot be"
              + " recorded: run the forward once, or refresh, before the capture");
    }
    context.awaitFactors(side);
    for (int s = 0; s < rows.length(); s++) {
      if (context.uses(s) && rows.get(s) != context.slot(s)) {
        write(s, context.slot(s));
      }
    }
  }

  private void write(int slot, @Nullable LoraLayer layer) {
    List<DeviceBuffer> own = new ArrayList<>();
    boolean done = false;
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment row = arena.allocate(ROW_BYTES);
      Summary next = fill(slot, layer, row, own);
      // Few bytes of native memory: the driver takes them along at once.
      device.copy(
          Tensor.of(DType.U8, row, 1, ROW_BYTES),
          table.tensor(DType.U8, slots(), ROW_BYTES).narrow(0, slot, 1),
          side);
      Device.Fence written = device.fence(side);
      done = true;
      packed.set(slot, own).forEach(DeviceBuffer::close);
      Device.Fence before = pending.getAndSet(slot, written);
      if (before != null) {
        before.close();
      }
      summary = next;
      rows.set(slot, layer);
    } finally {
      if (!done) {
        own.forEach(DeviceBuffer::close);
      }
    }
  }

  private Summary fill(
      int slot, @Nullable LoraLayer layer, MemorySegment row, List<DeviceBuffer> own) {
    int[][] ranks = summary.ranks.clone();
    int[][] types = summary.types.clone();
    ranks[slot] = new int[TARGETS];
    types[slot] = new int[TARGETS];
    List<Tensor> seen = new ArrayList<>();
    List<Placed> places = new ArrayList<>();
    List<Use> uses = new ArrayList<>();
    int experts = 1;
    for (int t = 0; t < TARGETS; t++) {
      LoraTarget target = COLUMNS.get(t);
      LoraFactors f = layer == null ? null : layer.get(target);
      if (f != null) {
        requireReadable(target, f);
        int type = LoraKernels.code(f.a().dtype(), f.b().dtype());
        boolean fast = (type == 1 || type == 2) && f.inFeatures() % VECTOR == 0;
        int rank = fast ? Math.ceilDiv(f.rank(), VECTOR) * VECTOR : f.rank();
        Placed a = place(f.a(), rank, f.inFeatures(), false, fast, seen, places, own);
        Placed b = place(f.b(), f.outFeatures(), rank, true, fast, seen, places, own);
        long at = (long) t * FACTOR_BYTES;
        row.set(LONG, at, a.address);
        row.set(LONG, at + 8, b.address);
        row.set(LONG, at + 16, a.expertStride);
        row.set(LONG, at + 24, b.expertStride);
        row.set(INT, at + 32, Math.toIntExact(b.rowStride));
        row.set(INT, at + 36, rank);
        row.set(INT, at + 40, type);
        row.set(INT, at + 44, f.numExperts() == 1 ? 0 : f.numExperts());
        ranks[slot][t] = rank;
        types[slot][t] = type;
        experts = Math.max(experts, target.isRouted() ? f.numExperts() : 1);
      }
      uses.add(use(t, slot, f, ranks, types));
    }
    int adapters = 0;
    for (int s = 0; s < slots(); s++) {
      LoraLayer other = s == slot ? layer : rows.get(s);
      adapters += other != null && other.maxRank() > 0 ? 1 : 0;
      if (other != null && s != slot) {
        for (var e : other.factors().entrySet()) {
          experts = Math.max(experts, e.getKey().isRouted() ? e.getValue().numExperts() : 1);
        }
      }
    }
    return new Summary(uses, ranks, types, adapters, experts);
  }

  private Use use(int t, int slot, @Nullable LoraFactors now, int[][] ranks, int[][] types) {
    LoraTarget target = COLUMNS.get(t);
    int in = 0;
    int out = 0;
    int mask = 0;
    int most = 0;
    for (int s = 0; s < slots(); s++) {
      LoraLayer other = rows.get(s);
      LoraFactors f = s == slot ? now : other == null ? null : other.get(target);
      if (f == null) {
        continue;
      }
      if (in != 0 && (in != f.inFeatures() || out != f.outFeatures())) {
        throw new IllegalArgumentException(
            target
                + " factors of slot "
                + s
                + " map "
                + f.inFeatures()
                + " -> "
                + f.outFeatures()
                + ", those of another slot "
                + in
                + " -> "
                + out);
      }
      in = f.inFeatures();
      out = f.outFeatures();
      mask |= 1 << types[s][t];
      most = Math.max(most, ranks[s][t]);
    }
    return in == 0 ? Use.NONE : new Use(in, out, mask, most);
  }

  private static void requireReadable(LoraTarget target, LoraFactors f) {
    if (LoraKernels.code(f.a().dtype()) < 0
        || LoraKernels.code(f.b().dtype()) < 0
        || f.a().isHost()
        || f.b().isHost()) {
      throw new IllegalArgumentException(
          target
              + " factors are a "
              + f.a()
              + ", b "
              + f.b()
              + "; must be F32, BF16 or F16, in device memory");
    }
  }

  private Placed place(
      Tensor t,
      int wantRows,
      int wantColumns,
      boolean anyRowStride,
      boolean fast,
      List<Tensor> seen,
      List<Placed> places,
      List<DeviceBuffer> own) {
    for (int i = 0; i < seen.size(); i++) {
      if (sameView(seen.get(i), t)) {
        return places.get(i);
      }
    }
    boolean one = t.size(0) == 1 || t.stride(0) == 0;
    boolean readable =
        t.size(1) == wantRows
            && t.size(2) == wantColumns
            && (t.size(2) == 1 || t.stride(2) == 1)
            && (anyRowStride || wantRows == 1 || t.stride(1) == wantColumns)
            && t.stride(1) >= 0
            && t.stride(1) <= Integer.MAX_VALUE
            && (!fast
                || (t.deviceAddress() % ALIGNMENT == 0
                    && t.stride(1) % VECTOR == 0
                    && (one || t.stride(0) % VECTOR == 0)));
    Placed placed =
        readable
            ? new Placed(t.deviceAddress(), one ? 0 : t.stride(0), t.stride(1))
            : pack(t, wantRows, wantColumns, one, own);
    seen.add(t);
    places.add(placed);
    return placed;
  }

  private Placed pack(Tensor t, int toRows, int toColumns, boolean one, List<DeviceBuffer> own) {
    long n = Math.multiplyExact((one ? 1 : t.size(0)) * toRows, toColumns);
    DeviceBuffer buffer = device.allocate(t.dtype().byteSize(n), side);
    own.add(buffer);
    kernels
        .pack
        .begin()
        .pointer(t.deviceAddress())
        .pointer(buffer.memory().address())
        .i64(n)
        .i64(t.stride(0))
        .i64(t.stride(1))
        .i64(t.stride(2))
        .i32((int) t.size(1))
        .i32((int) t.size(2))
        .i32(toRows)
        .i32(toColumns)
        .i32((int) t.dtype().byteSize(1))
        .launch(side, Math.toIntExact(Math.ceilDiv(n, PACK_THREADS)));
    return new Placed(
        buffer.memory().address(),
        one ? 0 : Math.multiplyExact((long) toRows, toColumns),
        toColumns);
  }

  /** Gate and up of a fused adapter share A: they must share its place. */
  private static boolean sameView(Tensor a, Tensor b) {
    if (a.dtype() != b.dtype()
        || a.deviceAddress() != b.deviceAddress()
        || !java.util.Arrays.equals(a.shape(), b.shape())) {
      return false;
    }
    for (int d = 0; d < a.dims(); d++) {
      if (a.stride(d) != b.stride(d)) {
        return false;
      }
    }
    return true;
  }

  @Override
  public synchronized void close() {
    // First: this waits for all work, and what is packed is given back in the side stream's order.
    table.close();
    packed.forEach(l -> l.forEach(DeviceBuffer::close));
    packed.replaceAll(l -> List.of());
    for (int s = 0; s < pending.length(); s++) {
      Device.Fence fence = pending.getAndSet(s, null);
      if (fence != null) {
        fence.close();
      }
    }
  }
}
