package io.moe4j.backend.flashinfer;

import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.List;

/**
 * Tensors in memory taken from a device, given back together; and ways to fill them. For use while
 * a layer is prepared, by one thread.
 */
final class DeviceTensors implements AutoCloseable {
  private final Device device;
  private final List<Device.Buffer> buffers = new ArrayList<>();

  DeviceTensors(Device device) {
    this.device = device;
  }

  Device device() {
    return device;
  }

  /** {@return room on the device; contents undefined; valid until this is closed} */
  Tensor allocate(DType dtype, long... shape) {
    long count = 1;
    for (long s : shape) {
      count = Math.multiplyExact(count, s);
    }
    Device.Buffer buffer = device.allocate(dtype.byteSize(count));
    buffers.add(buffer);
    return Tensor.of(dtype, buffer.memory(), shape);
  }

  /**
   * Copies elements, and waits.
   *
   * @param from any strides on the host, contiguous on the device
   * @param to contiguous on the device, the same dtype and shape
   */
  void copy(Tensor from, Tensor to) {
    DeviceStream stream = device.defaultStream();
    if (!from.isHost() || from.isContiguous()) {
      device.copy(from, to, stream);
      stream.synchronize();
      return;
    }
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment packed = arena.allocate(from.dtype().byteSize(from.elementCount()), 64);
      pack(from, packed, 0);
      device.copy(Tensor.of(from.dtype(), packed, from.shape()), to, stream);
      stream.synchronize();
    }
  }

  /** {@return bytes of the host on the device, as a tensor of any dtype} */
  Tensor upload(DType dtype, MemorySegment bytes, long... shape) {
    Tensor to = allocate(dtype, shape);
    copy(Tensor.of(dtype, bytes, shape), to);
    return to;
  }

  /** {@return numbers on the device} */
  Tensor floats(float[] values, long... shape) {
    Tensor to = allocate(DType.F32, shape);
    copy(Tensor.ofFloats(values, shape), to);
    return to;
  }

  /** {@return the elements without gaps on the host: the tensor itself where it is that already} */
  Tensor onHost(Tensor from, Arena arena) {
    if (from.isHost() && from.isContiguous()) {
      return from;
    }
    MemorySegment bytes = arena.allocate(from.dtype().byteSize(from.elementCount()), 64);
    Tensor to = Tensor.of(from.dtype(), bytes, from.shape());
    if (from.isHost()) {
      pack(from, bytes, 0);
    } else {
      DeviceStream stream = device.defaultStream();
      device.copy(from, to, stream);
      stream.synchronize();
    }
    return to;
  }

  /** Rows with gaps between them; elements of a row may have some too. */
  private static long pack(Tensor from, MemorySegment to, long at) {
    if (from.isContiguous()) {
      MemorySegment bytes = from.segment();
      MemorySegment.copy(bytes, 0, to, at, bytes.byteSize());
      return at + bytes.byteSize();
    }
    if (from.dims() > 1) {
      for (long i = 0; i < from.size(0); i++) {
        at = pack(from.select(0, i), to, at);
      }
      return at;
    }
    long size = from.dtype().byteSize(1); // 4-bit rows are contiguous
    for (long i = 0; i < from.size(0); i++) {
      MemorySegment element = from.select(0, i).segment();
      MemorySegment.copy(element, ValueLayout.JAVA_BYTE, 0, to, ValueLayout.JAVA_BYTE, at, size);
      at += size;
    }
    return at;
  }

  @Override
  public void close() {
    buffers.forEach(Device.Buffer::close);
    buffers.clear();
  }
}
