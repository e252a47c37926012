package io.moe4j.cuda;

import io.moe4j.api.device.Device;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.MemorySegment;
import java.util.concurrent.atomic.AtomicBoolean;
import jcuda.Pointer;
import jcuda.driver.JCudaDriver;

/**
 * Page-locked host memory: what asynchronous copies need to overlap with work on the device.
 * Expensive to take; keep it. Any thread may use it; nobody after close.
 */
public final class PinnedBuffer implements Device.Buffer {
  private static final int PORTABLE = JCudaDriver.CU_MEMHOSTALLOC_PORTABLE;

  private final CudaContext context;
  private final Pointer pointer = new Pointer();
  private final MemorySegment segment;
  private final AtomicBoolean closed = new AtomicBoolean();

  @SuppressWarnings("restricted") // the driver's memory, with the length we asked for
  PinnedBuffer(CudaContext context, long byteSize) {
    if (byteSize < 0) {
      throw new IllegalArgumentException("byteSize is " + byteSize + ", must not be negative");
    }
    this.context = context;
    context.makeCurrent();
    Cu.check(
        JCudaDriver.cuMemHostAlloc(pointer, Math.max(1, byteSize), PORTABLE),
        "cuMemHostAlloc",
        () -> byteSize + " bytes of page-locked memory");
    this.segment = Handles.segment(pointer).reinterpret(byteSize);
    context.pinned().addAndGet(byteSize);
  }

  @Override
  public HostMemory memory() {
    return new HostMemory(segment);
  }

  /** {@return the memory, valid until closed} */
  public MemorySegment segment() {
    return segment;
  }

  /**
   * A dense tensor over the start of the buffer.
   *
   * @param dtype element type
   * @param shape sizes
   * @return the view, valid until the buffer is closed
   */
  public Tensor tensor(DType dtype, long... shape) {
    return Tensor.of(dtype, segment, shape);
  }

  @Override
  public void close() {
    if (closed.compareAndSet(false, true)) {
      context.makeCurrent();
      Cu.check(JCudaDriver.cuMemFreeHost(pointer), "cuMemFreeHost");
      context.pinned().addAndGet(-segment.byteSize());
    }
  }
}
