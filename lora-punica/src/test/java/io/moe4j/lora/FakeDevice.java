package io.moe4j.lora;

import io.moe4j.api.DeviceException;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Memory;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.MemorySegment;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;

/**
 * A device whose memory is a map from invented addresses to arrays. Freed memory is overwritten and
 * can no longer be read, and no address is used twice, so that any read after a free shows.
 */
class FakeDevice implements Device {
  private static final byte FREED = (byte) 0x7f;

  final Map<Long, MemorySegment> memory = new ConcurrentHashMap<>();
  final AtomicInteger allocations = new AtomicInteger();

  /** How many more allocations succeed before one fails. */
  final AtomicInteger failAfter = new AtomicInteger(Integer.MAX_VALUE);

  private final AtomicLong next = new AtomicLong(1 << 20);

  @Override
  public DeviceInfo info() {
    return DeviceInfo.cuda(0, "fake", 9, 0);
  }

  @Override
  public Buffer allocate(long byteSize) {
    if (failAfter.getAndDecrement() == 0) {
      throw new DeviceException("out of memory");
    }
    allocations.incrementAndGet();
    long address = next.getAndAdd(byteSize + (1 << 20));
    memory.put(address, MemorySegment.ofArray(new byte[(int) byteSize]));
    return new Buffer() {
      @Override
      public Memory memory() {
        return new DeviceMemory(info().id(), address, byteSize);
      }

      @Override
      public void close() {
        MemorySegment bytes = memory.remove(address);
        if (bytes != null) {
          bytes.fill(FREED);
        }
      }
    };
  }

  @Override
  public DeviceStream defaultStream() {
    return new DeviceStream() {
      @Override
      public DeviceId device() {
        return new DeviceId(DeviceType.CUDA, 0);
      }

      @Override
      public long handle() {
        return 1;
      }

      @Override
      public void synchronize() {}
    };
  }

  @Override
  public void copy(Tensor from, Tensor to, DeviceStream stream) {
    read(to).segment().copyFrom(from.segment());
  }

  /** The device's bytes as a host tensor. */
  Tensor read(Tensor t) {
    DeviceMemory m = (DeviceMemory) t.memory();
    MemorySegment bytes = Objects.requireNonNull(memory.get(m.address()), "freed");
    long[] strides = new long[t.dims()];
    java.util.Arrays.setAll(strides, t::stride);
    return Tensor.strided(t.dtype(), new HostMemory(bytes), t.byteOffset(), t.shape(), strides);
  }

  @Override
  public void close() {}
}
