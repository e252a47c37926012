package com.example.acme;

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
import java.util.concurrent.ConcurrentSkipListMap;
import java.util.concurrent.atomic.AtomicLong;

/**
 * A made-up card. Its memory has addresses that mean nothing to the host; only the card's own code,
 * {@link #onCard}, can look behind them.
 */
final class AcmeDevice implements Device {
  static final DeviceType TYPE = new DeviceType("acme");
  static final DeviceInfo INFO = DeviceInfo.of(new DeviceId(TYPE, 0), "Acme Card");

  private static final ConcurrentSkipListMap<Long, MemorySegment> MEMORY =
      new ConcurrentSkipListMap<>();
  private static final AtomicLong NEXT = new AtomicLong(1L << 40);

  private static final DeviceStream STREAM =
      new DeviceStream() {
        @Override
        public DeviceId device() {
          return INFO.id();
        }

        @Override
        public long handle() {
          return 1;
        }

        @Override
        public void synchronize() {}
      };

  /** What the card sees: a tensor in its memory as one that its code can read and write. */
  static Tensor onCard(Tensor t) {
    if (!(t.memory() instanceof DeviceMemory there)) {
      return t; // weights stay in host memory, which this card reads over the bus
    }
    Map.Entry<Long, MemorySegment> block = MEMORY.floorEntry(there.address());
    if (block == null) {
      throw new DeviceException("no memory of " + INFO.name() + " at " + there.address());
    }
    long start = there.address() - block.getKey();
    long[] strides = new long[t.dims()];
    java.util.Arrays.setAll(strides, t::stride);
    return Tensor.strided(
        t.dtype(),
        new HostMemory(block.getValue().asSlice(start, there.byteSize())),
        t.byteOffset(),
        t.shape(),
        strides);
  }

  @Override
  public DeviceInfo info() {
    return INFO;
  }

  @Override
  public Buffer allocate(long byteSize) {
    long address = NEXT.getAndAdd(byteSize + 4096 & -64L);
    MEMORY.put(address, MemorySegment.ofArray(new byte[Math.toIntExact(byteSize)]));
    Memory memory = new DeviceMemory(INFO.id(), address, byteSize);
    return new Buffer() {
      @Override
      public Memory memory() {
        return memory;
      }

      @Override
      public void close() {
        MEMORY.remove(address);
      }
    };
  }

  @Override
  public DeviceStream defaultStream() {
    return STREAM;
  }

  @Override
  public void copy(Tensor from, Tensor to, DeviceStream stream) {
    onCard(to).segment().copyFrom(onCard(from).segment());
  }

  @Override
  public void close() {}
}
