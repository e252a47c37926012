package io.moe4j.cuda;

import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.cuda.ffi.CudaDriver;
import java.lang.foreign.MemorySegment;
import java.util.concurrent.atomic.AtomicBoolean;
import jcuda.driver.CUstream;
import jcuda.driver.CUstreamCaptureStatus;
import jcuda.driver.CUstream_flags;
import jcuda.driver.JCudaDriver;

/**
 * A stream: one of our own, or a view of a handle that somebody else owns (an engine's stream, also
 * while it captures a graph). Safe for several threads as far as the driver's streams are.
 */
public final class CudaStream implements Device.OwnedStream {
  private final CudaContext context;
  private final CUstream handle;
  private final boolean owned;
  private final AtomicBoolean closed = new AtomicBoolean();

  private CudaStream(CudaContext context, CUstream handle, boolean owned) {
    this.context = context;
    this.handle = handle;
    this.owned = owned;
  }

  /** A new stream that does not synchronise with the legacy default stream. */
  static CudaStream create(CudaContext context) {
    context.makeCurrent();
    CUstream s = new CUstream();
    Cu.check(
        JCudaDriver.cuStreamCreate(s, CUstream_flags.CU_STREAM_NON_BLOCKING), "cuStreamCreate");
    return new CudaStream(context, s, true);
  }

  static CudaStream wrap(CudaContext context, long handle) {
    return new CudaStream(context, Handles.wrap(new CUstream(), handle), false);
  }

  /** The driver does not check handles: it reads where a closed one pointed to. */
  private CUstream open() {
    if (closed.get()) {
      throw new IllegalStateException("the stream of " + device() + " is closed");
    }
    return handle;
  }

  @Override
  public DeviceId device() {
    return context.info().id();
  }

  @Override
  public long handle() {
    return Handles.raw(open());
  }

  @Override
  public void synchronize() {
    context.makeCurrent();
    Cu.check(
        CudaDriver.cuStreamSynchronize(Handles.segment(open())),
        "cuStreamSynchronize",
        () -> "some work on " + this + " failed");
    for (StreamGuard guard : context.guards()) {
      guard.check(this);
    }
  }

  /**
   * Makes later work of this stream wait for an event.
   *
   * @param event recorded on any stream
   */
  public void waitFor(CudaEvent event) {
    context.makeCurrent();
    Cu.check(
        CudaDriver.cuStreamWaitEvent(Handles.segment(open()), event.segment(), 0),
        "cuStreamWaitEvent");
  }

  /**
   * {@return whether work enqueued now is recorded into a graph instead of run}
   *
   * @param stream of a CUDA device
   */
  public static boolean isCapturing(DeviceStream stream) {
    int[] status = new int[1];
    Cu.check(JCudaDriver.cuStreamIsCapturing(jcuda(stream), status), "cuStreamIsCapturing");
    return status[0] != CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE;
  }

  /** The handle as the bindings take it; any {@link DeviceStream} of a CUDA device has one. */
  static MemorySegment segment(DeviceStream stream) {
    if (!stream.device().type().equals(DeviceType.CUDA)) {
      throw new IllegalArgumentException(
          "given the " + stream + ", needed a stream of a CUDA device");
    }
    return MemorySegment.ofAddress(stream.handle());
  }

  static CUstream jcuda(DeviceStream stream) {
    return Handles.wrap(new CUstream(), segment(stream).address());
  }

  /** Destroys a stream of our own once its work is done; a wrapped one is left alone. */
  @Override
  public void close() {
    if (owned && closed.compareAndSet(false, true)) {
      context.makeCurrent();
      Cu.check(JCudaDriver.cuStreamDestroy(handle), "cuStreamDestroy");
    }
  }

  /**
   * Like {@code stream 0x7f... of cuda:0}.
   *
   * @return handle and device
   */
  @Override
  public String toString() {
    return "stream 0x" + Long.toHexString(Handles.raw(handle)) + " of " + device();
  }
}
