package io.moe4j.cuda;

import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.Tensor;
import java.util.concurrent.atomic.AtomicBoolean;
import jcuda.driver.CUdeviceptr;
import jcuda.driver.JCudaDriver;
import org.jspecify.annotations.Nullable;

/** Device memory taken from the driver, or from its stream-ordered pool. Closing gives it back. */
public final class DeviceBuffer implements Device.Buffer {
  private final CudaContext context;
  private final DeviceMemory memory;
  private final @Nullable DeviceStream pool;
  private final AtomicBoolean closed = new AtomicBoolean();

  private DeviceBuffer(
      CudaContext context, long address, long byteSize, @Nullable DeviceStream pool) {
    this.context = context;
    this.memory = new DeviceMemory(context.info().id(), address, byteSize);
    this.pool = pool;
  }

  static DeviceBuffer allocate(CudaContext context, long byteSize) {
    return allocate(context, byteSize, null);
  }

  /** With a stream: from the pool, usable by work enqueued on it after this call. */
  static DeviceBuffer allocate(CudaContext context, long byteSize, @Nullable DeviceStream stream) {
    if (byteSize < 0) {
      throw new IllegalArgumentException("byteSize is " + byteSize + ", must not be negative");
    }
    if (byteSize == 0) {
      return new DeviceBuffer(context, 0, 0, null);
    }
    context.makeCurrent();
    CUdeviceptr p = new CUdeviceptr();
    int r =
        stream == null
            ? JCudaDriver.cuMemAlloc(p, byteSize)
            : JCudaDriver.cuMemAllocAsync(p, byteSize, CudaStream.jcuda(stream));
    Cu.check(
        r,
        stream == null ? "cuMemAlloc" : "cuMemAllocAsync",
        () -> {
          long[] free = new long[1];
          long[] total = new long[1];
          JCudaDriver.cuMemGetInfo(free, total);
          return byteSize
              + " bytes asked for on "
              + context.info().id()
              + ", "
              + free[0]
              + " of "
              + total[0]
              + " are free";
        });
    context.allocated().addAndGet(byteSize);
    return new DeviceBuffer(context, Handles.raw(p), byteSize, stream);
  }

  @Override
  public DeviceMemory memory() {
    return memory;
  }

  /**
   * A dense tensor over the start of the buffer.
   *
   * @param dtype element type
   * @param shape sizes
   * @return the view, valid until the buffer is closed
   */
  public Tensor tensor(DType dtype, long... shape) {
    return Tensor.of(dtype, memory, shape);
  }

  /** {@return the whole buffer as scratch} */
  public Workspace workspace() {
    return new Workspace(memory);
  }

  /** Gives the memory back; from the pool: after the work enqueued on its stream so far. */
  @Override
  public void close() {
    if (memory.byteSize() == 0 || !closed.compareAndSet(false, true)) {
      return;
    }
    context.makeCurrent();
    CUdeviceptr p = Handles.wrap(new CUdeviceptr(), memory.address());
    DeviceStream stream = pool;
    if (stream == null) {
      Cu.check(JCudaDriver.cuMemFree(p), "cuMemFree");
    } else {
      Cu.check(JCudaDriver.cuMemFreeAsync(p, CudaStream.jcuda(stream)), "cuMemFreeAsync");
    }
    context.allocated().addAndGet(-memory.byteSize());
  }
}
