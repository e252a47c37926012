package io.moe4j.reference;

import io.moe4j.api.DeviceException;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Memory;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;

/**
 * The host processor as a device: native memory, one synchronous stream. Holds nothing itself, so
 * closing it frees nothing.
 *
 * @since 0.2.0
 */
public final class HostDevice implements Device {
  private final DeviceInfo info;

  /**
   * The processor as a device.
   *
   * @param info what is known of the processor
   */
  public HostDevice(DeviceInfo info) {
    this.info = info;
  }

  @Override
  public DeviceInfo info() {
    return info;
  }

  @Override
  public Buffer allocate(long byteSize) {
    if (byteSize < 0) {
      throw new IllegalArgumentException("byteSize is " + byteSize + ", must not be negative");
    }
    Arena arena = Arena.ofShared();
    try {
      MemorySegment segment = arena.allocate(byteSize, Workspace.ALIGNMENT);
      return new HostBuffer(arena, new HostMemory(segment));
    } catch (OutOfMemoryError e) {
      arena.close();
      throw new DeviceException("the host cannot allocate " + byteSize + " bytes", e);
    }
  }

  /** Native memory that goes with its arena. */
  private record HostBuffer(Arena arena, Memory memory) implements Buffer {
    @Override
    public void close() {
      if (arena.scope().isAlive()) {
        arena.close();
      }
    }
  }

  @Override
  public DeviceStream defaultStream() {
    return DeviceStream.HOST;
  }

  @Override
  public void copy(Tensor from, Tensor to, DeviceStream stream) {
    if (from.dtype() != to.dtype() || !Arrays.equals(from.shape(), to.shape())) {
      throw new IllegalArgumentException(
          "cannot copy " + from + " to " + to + "; shape and dtype must be the same");
    }
    to.segment().copyFrom(from.segment());
  }

  @Override
  public void close() {}
}
