package io.moe4j.backend.marlin;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.Weight;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaStream;
import io.moe4j.cuda.DeviceBuffer;
import io.moe4j.cuda.DeviceWeights;
import java.lang.foreign.MemorySegment;
import org.jspecify.annotations.Nullable;

/**
 * Brings weights to the card as they lie in the checkpoint, one after the other through the same
 * memory, and lets {@code repack.cu} write them where the products read them. For one thread, while
 * a layer is prepared.
 */
final class Repacker implements AutoCloseable {
  private static final int CODES_BLOCK = 256;
  private static final int SCALES_BLOCK = 128;
  private static final int ALIGNMENT = 256;

  /** A view of more than this times its own bytes is made dense on the host first. */
  private static final int SPARSE = 3;

  private final CudaDevice device;
  private final MarlinKernels kernels;
  private final CudaStream stream;
  private final DeviceWeights memory;
  private DeviceBuffer staging;
  private long used;

  Repacker(CudaDevice device, MarlinKernels kernels, DeviceWeights memory) {
    this.memory = memory;
    this.device = device;
    this.kernels = kernels;
    this.stream = device.defaultStream();
    this.staging = device.allocate(0);
  }

  /**
   * Repacks one weight.
   *
   * @param weight in host memory or on this device
   * @param plan of it, made before it was moved
   * @param to where
   * @param expert whose
   * @param matrix which of the expert's
   */
  void run(Weight weight, RepackPlan plan, PackedMatrices to, int expert, int matrix) {
    Tensor order = weight.groupIndex().orElse(null);
    reserve(room(weight, plan));
    int @Nullable [] permutation = plan.permutation();
    long perm = permutation == null ? 0 : place(Tensor.ofInts(permutation, permutation.length));
    Weight moved = weight.withTensors(t -> t.equals(order) ? t : staged(t));
    // Strides are now those of what lies on the card.
    RepackPlan at = RepackPlan.unordered(moved);
    PackedLayout layout = plan.layout();
    RepackPlan.Scales s = at.scales();
    RepackPlan.Codes z = at.zeros();
    Tensor global = moved.globalScale().orElse(null);
    Tensor zeros = moved.zeroPoints().orElse(null);
    int rows = Math.toIntExact(layout.out());
    kernels
        .get("repack_scales")
        .begin()
        .pointer(moved.scales().orElseThrow())
        .pointer(global)
        .pointer(zeros)
        .pointer(to.ratios(expert, matrix))
        .pointer(to.zeros(expert, matrix))
        .pointer(to.channels(expert, matrix))
        .i64(s.rowStride())
        .i64(s.groupStride())
        .i64(z == null ? 0 : z.rowStride())
        .i64(z == null ? 0 : z.columnStride())
        .i32(s.type())
        .i32(weight.dividedByGlobal() ? 1 : 0)
        .i32(Math.toIntExact(s.rowsAScale()))
        .i32(Math.toIntExact(s.group()))
        .i32(z == null ? layout.code().bits() : z.bits())
        .i32(z != null && z.alongColumns() ? 1 : 0)
        .i32(z != null && z.awq() ? 1 : 0)
        .i32(z == null ? 0 : z.flip())
        .i32(z == null ? layout.fixedZeroPoint() : z.offset())
        .i32(z == null ? 1 : z.wordBytes())
        .i32(layout.groupsAChunk())
        .i32(layout.groupShift())
        .i32(rows)
        .i32(Math.toIntExact(layout.in()))
        .i32(Math.toIntExact(plan.firstInput()))
        .i32(Math.toIntExact(plan.inputs()))
        .launch(
            stream,
            Math.toIntExact(
                Math.ceilDiv(layout.rowTiles() * PackedLayout.TILE_ROWS, SCALES_BLOCK)));
    RepackPlan.Codes c = at.codes();
    kernels
        .get("repack_codes")
        .begin()
        .pointer(moved.values())
        .pointer(perm)
        .pointer(to.codes(expert, matrix))
        .pointer(to.channels(expert, matrix))
        .i64(c.columnStride())
        .i64(c.rowStride())
        .i32(c.wordBytes())
        .i32(c.bits())
        .i32(c.alongColumns() ? 1 : 0)
        .i32(c.awq() ? 1 : 0)
        .i32(c.flip())
        .i32(layout.code() == PackedLayout.Code.E4M3 ? 1 : 0)
        .i32(rows)
        .i32(Math.toIntExact(layout.in()))
        .launch(
            stream, Math.toIntExact(Math.ceilDiv(layout.codeBytes() / Integer.BYTES, CODES_BLOCK)));
  }

  /** Bytes that everything of a weight may take in the staging memory. */
  private static long room(Weight weight, RepackPlan plan) {
    long[] sum = {0};
    weight.withTensors(t -> {
      sum[0] += SPARSE * up(t.dtype().byteSize(Math.max(2, t.elementCount()))) + ALIGNMENT;
      return t;
    });
    int @Nullable [] permutation = plan.permutation();
    return sum[0] + (permutation == null ? 0 : up((long) Integer.BYTES * permutation.length));
  }

  private void reserve(long bytes) {
    if (bytes > staging.memory().byteSize()) {
      // What still reads the old one comes first.
      stream.synchronize();
      staging.close();
      staging = device.allocate(bytes);
    }
    used = 0;
  }

  /** The tensor with its own strides on the device; one that is there already as it is. */
  private Tensor staged(Tensor t) {
    if (!t.isHost()) {
      return t;
    }
    long span = 1;
    for (int d = 0; d < t.dims(); d++) {
      span += (t.size(d) - 1) * t.stride(d);
    }
    long bytes = Math.ceilDiv(span * t.dtype().bits(), Byte.SIZE);
    if (t.isContiguous() || bytes <= SPARSE * t.dtype().byteSize(t.elementCount())) {
      MemorySegment from = ((HostMemory) t.memory()).segment().asSlice(t.byteOffset(), bytes);
      long[] strides = new long[t.dims()];
      for (int d = 0; d < strides.length; d++) {
        strides[d] = t.stride(d);
      }
      return Tensor.strided(t.dtype(), upload(from, bytes), 0, t.shape(), strides);
    }
    Tensor dense = Tensor.of(t.dtype(), part(t.dtype().byteSize(t.elementCount())), t.shape());
    memory.upload(t, dense);
    return dense;
  }

  private long place(Tensor t) {
    return staged(t).deviceAddress();
  }

  private DeviceMemory upload(MemorySegment from, long bytes) {
    DeviceMemory to = part(bytes);
    device.copy(Tensor.of(DType.U8, from, bytes), Tensor.of(DType.U8, to, bytes), stream);
    return to;
  }

  private DeviceMemory part(long bytes) {
    DeviceMemory all = staging.memory();
    DeviceMemory part = new DeviceMemory(all.device(), all.address() + used, bytes);
    used += up(bytes);
    return part;
  }

  private static long up(long bytes) {
    return Math.ceilDiv(bytes, ALIGNMENT) * ALIGNMENT;
  }

  @Override
  public void close() {
    stream.synchronize();
    staging.close();
  }
}
