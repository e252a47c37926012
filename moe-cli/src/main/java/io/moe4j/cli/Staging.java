package io.moe4j.cli;

import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.List;

/**
 * Tensors of one forward where a layer wants them: on the host as they are, elsewhere in buffers of
 * the device, given back with this. Not thread-safe.
 */
final class Staging implements AutoCloseable {
  private final Device device;
  private final Arena arena;
  private final List<AutoCloseable> owned = new ArrayList<>();

  /**
   * @param device where the layer computes
   * @param arena owns what is on the host
   */
  Staging(Device device, Arena arena) {
    this.device = device;
    this.arena = arena;
  }

  static boolean isHost(Device device) {
    return device.info().id().type().equals(DeviceType.CPU);
  }

  /** {@return {@code resource}, closed with this, the last first} */
  <T extends AutoCloseable> T own(T resource) {
    owned.add(resource);
    return resource;
  }

  /** {@return the same values on the device; the tensor itself if that is the host} */
  Tensor put(Tensor host) {
    if (isHost(device)) {
      return host;
    }
    Tensor there = empty(host.dtype(), host.shape());
    if (host.elementCount() > 0) {
      device.copy(host, there, device.defaultStream());
    }
    return there;
  }

  /** {@return a tensor on the device, of unspecified values} */
  Tensor empty(DType dtype, long... shape) {
    return isHost(device)
        ? onHost(dtype, shape)
        : Tensor.of(dtype, own(device.allocate(Math.max(1, bytes(dtype, shape)))).memory(), shape);
  }

  /** {@return the same values in the arena, when the device has come there} */
  Tensor toHost(Tensor there) {
    if (isHost(device)) {
      return there;
    }
    Tensor host = onHost(there.dtype(), there.shape());
    if (there.elementCount() > 0) {
      device.copy(there, host, device.defaultStream());
    }
    device.defaultStream().synchronize();
    return host;
  }

  private Tensor onHost(DType dtype, long... shape) {
    long bytes = bytes(dtype, shape);
    MemorySegment segment = arena.allocate(Math.max(1, bytes), 64);
    return Tensor.of(dtype, new HostMemory(segment.asSlice(0, bytes)), shape);
  }

  private static long bytes(DType dtype, long... shape) {
    long elements = 1;
    for (long n : shape) {
      elements = Math.multiplyExact(elements, n);
    }
    return dtype.byteSize(elements);
  }

  @Override
  public void close() {
    RuntimeException failed = null;
    for (AutoCloseable c : owned.reversed()) {
      try {
        c.close();
      } catch (Exception e) {
        RuntimeException why =
            e instanceof RuntimeException r
                ? r
                : new IllegalStateException("closing " + c + " failed", e);
        if (failed == null) {
          failed = why;
        } else {
          failed.addSuppressed(why);
        }
      }
    }
    if (failed != null) {
      throw failed;
    }
  }
}
