package io.moe4j.oracle;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceProvider;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.spi.BlockOpsProvider;
import io.moe4j.api.spi.Fact;
import io.moe4j.api.spi.Support;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Memory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.MoeLayerWeights;
import java.lang.foreign.MemorySegment;
import java.util.List;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;

/**
 * A device that counts what is taken from it and writes down what it is told. On the host it
 * computes for real; as any other type its addresses lead nowhere and its operations only write
 * down.
 */
final class FakeDevice implements Device {
  final List<String> events = new CopyOnWriteArrayList<>();
  final AtomicInteger live = new AtomicInteger();
  final AtomicInteger allocations = new AtomicInteger();
  final AtomicInteger closed = new AtomicInteger();
  private final AtomicLong nextAddress = new AtomicLong(1L << 40);
  private final DeviceId id;
  long failAbove = Long.MAX_VALUE;
  long blockWorkspacePerToken = 16;
  boolean routesAlone;

  /** Whether modular experts take the routing upon them. */
  boolean routesInside;

  /** Whether blocks route by token id and know zero experts. */
  boolean anyRouting;

  List<Fact> blockFacts = List.of();

  FakeDevice() {
    this(DeviceId.CPU);
  }

  FakeDevice(DeviceId id) {
    this.id = id;
  }

  /** A provider that hands out this device. */
  DeviceProvider provider() {
    return new DeviceProvider() {
      @Override
      public DeviceType type() {
        return id.type();
      }

      @Override
      public Probe probe() {
        return new Probe(List.of(info()), "");
      }

      @Override
      public Device open(int ordinal) {
        events.add("open " + ordinal);
        return FakeDevice.this;
      }
    };
  }

  /** Operations on this device. */
  BlockOpsProvider blockOps() {
    return new BlockOpsProvider() {
      @Override
      public DeviceType deviceType() {
        return id.type();
      }

      @Override
      public Support isSupportedConfig(MoeConfig config) {
        return anyRouting ? Support.yes() : BlockOpsProvider.super.isSupportedConfig(config);
      }

      @Override
      public BlockOps prepare(MoeConfig config, MoeLayerWeights weights, Device device) {
        return new FakeBlock(FakeDevice.this, config);
      }
    };
  }

  boolean isHost() {
    return id.type().equals(DeviceType.CPU);
  }

  @Override
  public DeviceInfo info() {
    return DeviceInfo.of(id, "fake");
  }

  @Override
  public Buffer allocate(long byteSize) {
    if (byteSize > failAbove) {
      throw new io.moe4j.api.DeviceException("fake device has no " + byteSize + " bytes");
    }
    live.incrementAndGet();
    allocations.incrementAndGet();
    Memory memory =
        isHost()
            ? new HostMemory(MemorySegment.ofArray(new long[Math.toIntExact(byteSize / 8 + 1)]))
            : new DeviceMemory(id, nextAddress.getAndAdd(byteSize + 4096), byteSize);
    return new Buffer() {
      private boolean open = true;

      @Override
      public Memory memory() {
        return memory;
      }

      @Override
      public void close() {
        if (!open) {
          throw new AssertionError("buffer closed twice");
        }
        open = false;
        live.decrementAndGet();
      }
    };
  }

  DeviceStream stream(String name) {
    return new DeviceStream() {
      @Override
      public DeviceId device() {
        return id;
      }

      @Override
      public long handle() {
        return 7;
      }

      @Override
      public void synchronize() {
        events.add("synchronize " + name);
      }

      @Override
      public String toString() {
        return name;
      }
    };
  }

  private final DeviceStream defaultStream = stream("default");

  @Override
  public DeviceStream defaultStream() {
    return isHost() ? DeviceStream.HOST : defaultStream;
  }

  @Override
  public void copy(Tensor from, Tensor to, DeviceStream stream) {
    if (to.isHost()) {
      to.segment().copyFrom(from.segment());
    }
    events.add("copy " + from);
  }

  @Override
  public void close() {
    closed.incrementAndGet();
    events.add("close device");
  }
}
