package io.moe4j.tck;

import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.tensor.Memory;
import io.moe4j.api.tensor.Tensor;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicLong;

/** A device that knows how much of its memory is out. */
final class CountingDevice implements Device {
  private final Device device;
  private final AtomicLong bytes = new AtomicLong();

  CountingDevice(Device device) {
    this.device = device;
  }

  long bytesInUse() {
    return bytes.get();
  }

  @Override
  public DeviceInfo info() {
    return device.info();
  }

  @Override
  public Buffer allocate(long byteSize) {
    Buffer buffer = device.allocate(byteSize);
    bytes.addAndGet(byteSize);
    return new Buffer() {
      private final AtomicBoolean open = new AtomicBoolean(true);

      @Override
      public Memory memory() {
        return buffer.memory();
      }

      @Override
      public void close() {
        if (open.compareAndSet(true, false)) {
          bytes.addAndGet(-byteSize);
        }
        buffer.close();
      }
    };
  }

  @Override
  public DeviceStream defaultStream() {
    return device.defaultStream();
  }

  @Override
  public void copy(Tensor from, Tensor to, DeviceStream stream) {
    device.copy(from, to, stream);
  }

  @Override
  public void close() {
    device.close();
  }
}
