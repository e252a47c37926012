package io.moe4j.cuda.ops;

import io.moe4j.api.config.MoeConfig;
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
import java.util.IdentityHashMap;
import java.util.List;
import java.util.concurrent.atomic.AtomicReferenceArray;
import org.jspecify.annotations.Nullable;

/**
 * What the kernels know of one set of adapters in slots: one row a slot in device memory, see
 * {@code table.py}. Factors are read where they lie; those whose rank or layout the kernels cannot
 * read (rank no multiple of 8, another dtype, rows that are not dense) are packed once into memory
 * of their own. So a slot takes the memory of its adapter's own ranks. Filled under the lock of
 * {@link SlotTables}, on a side stream, behind the arrival of the factors and whatever read the
 * slot before; forwards wait for a row on the device, the host never.
 *
 * @since 0.2.0
 */
public final class SlotTable implements AutoCloseable {
  /** int64 words of a row. */
  public static final int WIDTH = 24;

  /** Ranks of a page, the unit in which the kernels go through a factor. */
  public static final int PAGE = 16;

  /** Ranks the kernels can count: a row stride of B is kept in 8 bits, over 8. */
  public static final int MAX_RANK = 1016;

  private static final int LIVE = 0;
  private static final int PAGES13 = 1;
  private static final int PAGES2 = 2;
  private static final int SHARED_A = 3;
  private static final int A_ADDR = 4;
  private static final int B_ADDR = 7;
  private static final int A_EXPERT = 10;
  private static final int B_EXPERT = 13;
  private static final int B_ROW = 16;
  private static final int RANK = 19;
  private static final int VECTOR = 8;
  private static final int ALIGNMENT = 16;
  private static final int MAX_ROW = 2040;

  /** A factor as the kernels read it. */
  private record Placed(long address, long expertStride, long rowStride) {}

  private final CudaDevice device;
  private final PackKernel pack;
  private final DType type;
  private final boolean gated;
  private final PaddedSizes sizes;
  private final DeviceBuffer table;
  private final Tensor tableTensor;
  private final @Nullable LoraLayer[] layers;
  private final List<List<DeviceBuffer>> packed = new ArrayList<>();
  private final int[] ranks;
  private final CudaStream side;
  // Behind the writing of a row, until that is seen to be done.
  private final AtomicReferenceArray<Device.@Nullable Fence> pending;

  /**
   * @param side writes the rows; stays open longer
   */
  SlotTable(
      CudaDevice device, ExpertKernels kernels, MoeConfig config, int slots, CudaStream side) {
    this.device = device;
    this.side = side;
    this.pending = new AtomicReferenceArray<>(slots);
    this.type = config.weightDtype();
    this.pack = new PackKernel(kernels, type);
    this.gated = config.activation().isGated();
    this.sizes = PaddedSizes.of(config);
    this.table = device.allocate(Math.multiplyExact((long) slots * WIDTH, Long.BYTES));
    this.tableTensor = table.tensor(DType.I64, slots, WIDTH);
    this.layers = new LoraLayer[slots];
    this.ranks = new int[slots];
    for (int i = 0; i < slots; i++) {
      packed.add(List.of());
    }
    device.fill(tableTensor, 0, side);
    side.synchronize();
  }

  /** {@return the table's device address} */
  public long address() {
    return table.memory().address();
  }

  /** {@return its rows} */
  public int slots() {
    return layers.length;
  }

  /**
   * What a call's adapters need at most.
   *
   * @param rank the largest, padded to a page; 0 = nothing to add anywhere
   * @param used slots with factors for this layer
   * @since 0.2.0
   */
  public record Extent(int rank, int used) {}

  /**
   * {@return what the slots that a context uses need at most; their rows are up to date}
   *
   * @param context the call's
   */
  public Extent extent(MoeLoraContext context) {
    int rank = 0;
    int used = 0;
    for (int s = 0; s < layers.length; s++) {
      if (ranks[s] > 0 && uses(context, s)) {
        rank = Math.max(rank, ranks[s]);
        used++;
      }
    }
    return new Extent(Math.ceilDiv(rank, PAGE) * PAGE, used);
  }

  /** Whether the slots that a context uses are here; the rows of others may be out of date. */
  boolean shows(MoeLoraContext context) {
    for (int s = 0; s < layers.length; s++) {
      if (uses(context, s) && !same(layers[s], layerOf(context, s))) {
        return false;
      }
    }
    return true;
  }

  /** Writes the rows of the slots that a context uses and that have changed hands. */
  void show(MoeLoraContext context) {
    context.awaitFactors(side);
    for (int s = 0; s < layers.length; s++) {
      LoraLayer now = layerOf(context, s);
      if (uses(context, s) && !same(layers[s], now)) {
        update(s, now);
      }
    }
  }

  /** Whether the rows are those of a context's slots, empty ones included. */
  boolean matches(MoeLoraContext context) {
    for (int s = 0; s < layers.length; s++) {
      if (!same(layers[s], layerOf(context, s))) {
        return false;
      }
    }
    return true;
  }

  /** Whether only rows of empty slots differ, so that filling them disturbs nobody. */
  boolean canFill(MoeLoraContext context) {
    for (int s = 0; s < layers.length; s++) {
      if (layers[s] != null && !same(layers[s], layerOf(context, s))) {
        return false;
      }
    }
    return true;
  }

  /** Writes the rows that differ. */
  void fill(MoeLoraContext context) {
    context.awaitFactors(side);
    for (int s = 0; s < layers.length; s++) {
      LoraLayer now = layerOf(context, s);
      if (!same(layers[s], now)) {
        update(s, now);
      }
    }
  }

  /** Makes a stream wait for the rows of the slots that a context uses. */
  void await(MoeLoraContext context, DeviceStream stream) {
    for (int s = 0; s < layers.length; s++) {
      Device.Fence fence = pending.get(s);
      if (fence != null && uses(context, s) && !fence.makeWait(stream)) {
        pending.compareAndSet(s, fence, null);
      }
    }
  }

  private static boolean uses(MoeLoraContext context, int slot) {
    return slot < context.maxLoras() && context.uses(slot);
  }

  private static @Nullable LoraLayer layerOf(MoeLoraContext context, int slot) {
    return slot < context.maxLoras() ? context.slot(slot) : null;
  }

  /** Whether a slot holds the same object: equal factors may lie elsewhere. */
  @SuppressWarnings("ReferenceEquality")
  private static boolean same(@Nullable LoraLayer a, @Nullable LoraLayer b) {
    return a == b;
  }

  private void update(int slot, @Nullable LoraLayer layer) {
    long[] row = new long[WIDTH];
    List<DeviceBuffer> own = new ArrayList<>();
    boolean done = false;
    try (Arena arena = Arena.ofConfined()) {
      int rank = layer == null ? 0 : fill(row, layer, own);
      // Few bytes of native memory: the driver takes them along at once.
      MemorySegment bytes = arena.allocateFrom(ValueLayout.JAVA_LONG, row);
      device.copy(Tensor.of(DType.I64, bytes, 1, WIDTH), tableTensor.narrow(0, slot, 1), side);
      Device.Fence written = device.fence(side);
      done = true;
      packed.set(slot, own).forEach(DeviceBuffer::close);
      Device.Fence before = pending.getAndSet(slot, written);
      if (before != null) {
        before.close();
      }
      ranks[slot] = rank;
      layers[slot] = layer;
    } finally {
      if (!done) {
        own.forEach(DeviceBuffer::close);
      }
    }
  }

  /** Fills a row; returns the largest rank. */
  private int fill(long[] row, LoraLayer layer, List<DeviceBuffer> own) {
    @Nullable LoraFactors[] targets = {
      layer.get(gated ? LoraTarget.GATE : LoraTarget.UP),
      gated ? layer.get(LoraTarget.UP) : null,
      layer.get(LoraTarget.DOWN)
    };
    int hidden = sizes.hidden();
    int inter = sizes.intermediate();
    IdentityHashMap<Tensor, Placed> known = new IdentityHashMap<>();
    Placed[] a = new Placed[targets.length];
    for (int i = 0; i < targets.length; i++) {
      LoraFactors f = targets[i];
      if (f == null) {
        continue;
      }
      if (f.rank() > MAX_RANK) {
        throw new IllegalArgumentException(
            "an adapter has rank " + f.rank() + ", at most " + MAX_RANK + " is supported");
      }
      int rank = Math.ceilDiv(f.rank(), VECTOR) * VECTOR;
      a[i] =
          i == 1 && sameMemory(targets[0], f)
              ? a[0]
              : place(f.a(), rank, i == 2 ? inter : hidden, true, known, own);
      Placed b = place(f.b(), i == 2 ? hidden : inter, rank, false, known, own);
      row[A_ADDR + i] = a[i].address() / 2;
      row[B_ADDR + i] = b.address() / 2;
      row[A_EXPERT + i] = a[i].expertStride();
      row[B_EXPERT + i] = b.expertStride();
      row[B_ROW + i] = b.rowStride();
      row[RANK + i] = rank;
    }
    row[SHARED_A] = a[0] != null && a[0].equals(a[1]) && row[RANK] == row[RANK + 1] ? 1 : 0;
    row[PAGES13] = Math.ceilDiv(Math.max(row[RANK], row[RANK + 1]), PAGE);
    row[PAGES2] = Math.ceilDiv(row[RANK + 2], PAGE);
    long max = Math.max(row[RANK], Math.max(row[RANK + 1], row[RANK + 2]));
    row[LIVE] = max > 0 ? 1 : 0;
    return (int) max;
  }

  private static boolean sameMemory(@Nullable LoraFactors first, LoraFactors second) {
    return first != null
        && first.rank() == second.rank()
        && first.a().memory().equals(second.a().memory())
        && first.a().byteOffset() == second.a().byteOffset()
        && first.a().stride(0) == second.a().stride(0)
        && first.a().size(0) == second.a().size(0);
  }

  private Placed place(
      Tensor t,
      long rows,
      long columns,
      boolean denseRows,
      IdentityHashMap<Tensor, Placed> known,
      List<DeviceBuffer> own) {
    Placed before = known.get(t);
    if (before != null) {
      return before;
    }
    long experts = t.size(0);
    boolean readable =
        t.dtype() == type
            && t.size(1) == rows
            && t.size(2) == columns
            && t.deviceAddress() % ALIGNMENT == 0
            && (t.size(2) == 1 || t.stride(2) == 1)
            && t.stride(1) % VECTOR == 0
            && (denseRows ? t.stride(1) == columns : t.stride(1) <= MAX_ROW)
            && (experts == 1 || t.stride(0) % VECTOR == 0);
    Placed placed;
    if (readable) {
      placed = new Placed(t.deviceAddress(), experts == 1 ? 0 : t.stride(0), t.stride(1));
    } else {
      boolean one = experts == 1 || t.stride(0) == 0;
      long kept = one ? 1 : experts;
      DeviceBuffer buffer = device.allocate(kept * rows * columns * 2, side);
      own.add(buffer);
      pack.run(t, kept, buffer.memory().address(), rows, columns, side);
      placed = new Placed(buffer.memory().address(), one ? 0 : rows * columns, columns);
    }
    known.put(t, placed);
    return placed;
  }

  @Override
  public void close() {
    // First: this waits for all work, and what is packed is given back in the side stream's order.
    table.close();
    packed.forEach(l -> l.forEach(DeviceBuffer::close));
    packed.clear();
    for (int s = 0; s < pending.length(); s++) {
      Device.Fence fence = pending.getAndSet(s, null);
      if (fence != null) {
        fence.close();
      }
    }
  }
}
