package io.moe4j.cuda;

import io.moe4j.api.device.DeviceStream;
import io.moe4j.cuda.ffi.CudaDriver;
import java.lang.foreign.MemorySegment;
import java.util.concurrent.atomic.AtomicBoolean;
import jcuda.driver.CUevent;
import jcuda.driver.CUevent_flags;
import jcuda.driver.CUresult;
import jcuda.driver.JCudaDriver;

/**
 * A point in a stream's work, to wait for or to measure from. Any thread may use it; nobody after
 * close.
 */
public final class CudaEvent implements AutoCloseable {
  private final CudaContext context;
  private final CUevent handle = new CUevent();
  private final AtomicBoolean closed = new AtomicBoolean();

  CudaEvent(CudaContext context, boolean timing) {
    this.context = context;
    context.makeCurrent();
    Cu.check(
        JCudaDriver.cuEventCreate(
            handle,
            timing ? CUevent_flags.CU_EVENT_DEFAULT : CUevent_flags.CU_EVENT_DISABLE_TIMING),
        "cuEventCreate");
  }

  /**
   * Marks what was enqueued so far.
   *
   * @param stream of the event's device
   */
  public void record(DeviceStream stream) {
    context.makeCurrent();
    Cu.check(CudaDriver.cuEventRecord(segment(), CudaStream.segment(stream)), "cuEventRecord");
  }

  /** {@return whether what it marks has finished; true if it was never recorded} */
  public boolean isDone() {
    context.makeCurrent();
    int r = JCudaDriver.cuEventQuery(open());
    if (r == CUresult.CUDA_ERROR_NOT_READY) {
      return false;
    }
    Cu.check(r, "cuEventQuery");
    return true;
  }

  /** Waits until what it marks has finished. */
  public void synchronize() {
    context.makeCurrent();
    Cu.check(JCudaDriver.cuEventSynchronize(open()), "cuEventSynchronize");
  }

  /**
   * {@return the device's time from an earlier event to this one, in microseconds}
   *
   * @param start recorded before; both made with timing, both finished
   */
  public double microsSince(CudaEvent start) {
    context.makeCurrent();
    float[] ms = new float[1];
    Cu.check(JCudaDriver.cuEventElapsedTime(ms, start.open(), open()), "cuEventElapsedTime");
    return ms[0] * 1e3;
  }

  /**
   * Makes a stream's later work wait for what it marks.
   *
   * @param stream of the event's device
   */
  public void holdBack(DeviceStream stream) {
    context.makeCurrent();
    Cu.check(
        CudaDriver.cuStreamWaitEvent(CudaStream.segment(stream), segment(), 0),
        "cuStreamWaitEvent");
  }

  MemorySegment segment() {
    return Handles.segment(open());
  }

  /** The driver does not check handles: it reads where a destroyed one pointed to. */
  private CUevent open() {
    if (closed.get()) {
      throw new IllegalStateException("the event of " + context.info().id() + " is closed");
    }
    return handle;
  }

  @Override
  public void close() {
    if (closed.compareAndSet(false, true)) {
      context.makeCurrent();
      Cu.check(JCudaDriver.cuEventDestroy(handle), "cuEventDestroy");
    }
  }
}
