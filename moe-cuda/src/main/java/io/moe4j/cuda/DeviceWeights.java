package io.moe4j.cuda;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * Weights brought to a device as dense tensors, and given back together. For use while a layer is
 * prepared, by one thread.
 */
public final class DeviceWeights implements AutoCloseable {
  private final CudaDevice device;
  private final List<DeviceBuffer> buffers = new ArrayList<>();

  /**
   * An empty set of copies.
   *
   * @param device where to
   */
  public DeviceWeights(CudaDevice device) {
    this.device = device;
  }

  /**
   * A dense copy on the device.
   *
   * @param source host tensor of any strides, or a tensor that lies dense on this device already:
   *     that one is taken as it is
   * @return the tensor, valid until this is closed
   */
  public Tensor dense(Tensor source) {
    if (!source.isHost()) {
      if (!source.isContiguous()) {
        throw new IllegalArgumentException(source + " is on a device and not contiguous");
      }
      return source;
    }
    Tensor target = allocate(source.dtype(), source.shape());
    upload(source, target);
    return target;
  }

  /**
   * A dense F32 copy on the device, for small vectors.
   *
   * @param source host tensor of any dtype and strides, an F32 tensor on this device, or null
   * @return the tensor, or null for null
   */
  public @Nullable Tensor floats(@Nullable Tensor source) {
    if (source == null || !source.isHost()) {
      return source;
    }
    return dense(Tensor.ofFloats(source.toFloats(), source.shape()));
  }

  /**
   * Room on the device.
   *
   * @param dtype element type
   * @param shape sizes
   * @return contents undefined; valid until this is closed
   */
  public Tensor allocate(DType dtype, long... shape) {
    long elements = 1;
    for (long s : shape) {
      elements = Math.multiplyExact(elements, s);
    }
    DeviceBuffer buffer = device.allocate(dtype.byteSize(elements));
    buffers.add(buffer);
    return buffer.tensor(dtype, shape);
  }

  /** {@return bytes of all that was allocated; what was on the device before is not counted} */
  public long byteSize() {
    return buffers.stream().mapToLong(b -> b.memory().byteSize()).sum();
  }

  /**
   * Copies a host tensor of any strides to a dense tensor on the device, and waits for it.
   *
   * @param source in host memory
   * @param target contiguous, same dtype and shape
   */
  public void upload(Tensor source, Tensor target) {
    CudaStream stream = device.defaultStream();
    if (source.isContiguous()) {
      device.copy(source, target, stream);
      stream.synchronize();
      return;
    }
    try (Arena arena = Arena.ofConfined()) {
      long bytes = source.dtype().byteSize(source.elementCount());
      MemorySegment packed = arena.allocate(bytes, 64);
      pack(source, packed, 0);
      device.copy(Tensor.of(source.dtype(), packed, source.shape()), target, stream);
      stream.synchronize();
    }
  }

  /** Writes the elements in row-major order; returns where the next ones go. */
  private static long pack(Tensor source, MemorySegment to, long at) {
    if (source.isContiguous()) {
      MemorySegment from = source.segment();
      MemorySegment.copy(from, 0, to, at, from.byteSize());
      return at + from.byteSize();
    }
    if (source.dims() > 1) {
      for (long i = 0; i < source.size(0); i++) {
        at = pack(source.select(0, i), to, at);
      }
      return at;
    }
    MemorySegment from = ((HostMemory) source.memory()).segment();
    long element = source.dtype().byteSize(1);
    long step = source.stride(0) * element;
    long where = source.byteOffset();
    for (long i = 0; i < source.size(0); i++, where += step, at += element) {
      switch ((int) element) {
        case 1 -> to.set(ValueLayout.JAVA_BYTE, at, from.get(ValueLayout.JAVA_BYTE, where));
        case 2 ->
            to.set(
                ValueLayout.JAVA_SHORT_UNALIGNED,
                at,
                from.get(ValueLayout.JAVA_SHORT_UNALIGNED, where));
        case 4 ->
            to.set(
                ValueLayout.JAVA_INT_UNALIGNED,
                at,
                from.get(ValueLayout.JAVA_INT_UNALIGNED, where));
        default -> MemorySegment.copy(from, where, to, at, element);
      }
    }
    return at;
  }

  @Override
  public void close() {
    buffers.forEach(DeviceBuffer::close);
    buffers.clear();
  }
}
