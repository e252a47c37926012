package io.moe4j.cuda;

import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.ffi.CudaDriver;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.Optional;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicBoolean;
import jcuda.driver.CUDA_MEMCPY2D;
import jcuda.driver.CUdeviceptr;
import jcuda.driver.CUmemorytype;
import jcuda.driver.JCudaDriver;

/**
 * An open NVIDIA device. Several opens of one ordinal share the primary context and the loaded
 * kernels; each has a default stream of its own. Safe for several threads; close it after
 * everything made from it.
 */
public final class CudaDevice implements Device {
  private final CudaContext context;
  private final CudaStream stream;
  private final HostStaging staging;
  private final ConcurrentHashMap<Long, CudaStream> beside = new ConcurrentHashMap<>();
  private final AtomicBoolean closed = new AtomicBoolean();

  private CudaDevice(CudaContext context, CudaStream stream) {
    this.context = context;
    this.stream = stream;
    this.staging = new HostStaging(context);
  }

  static CudaDevice open(DeviceInfo info) {
    CudaContext context = CudaContext.retain(info);
    try {
      return new CudaDevice(context, CudaStream.create(context));
    } catch (RuntimeException | Error e) {
      context.release();
      throw e;
    }
  }

  /**
   * The device as this module knows it: for backends, which are given a {@link Device}.
   *
   * @param device opened by {@link CudaDeviceProvider}
   * @return the same
   * @throws IllegalArgumentException if it is another kind
   */
  public static CudaDevice of(Device device) {
    if (device instanceof CudaDevice cuda) {
      return cuda;
    }
    throw new IllegalArgumentException(
        "device is "
            + device.info().id()
            + " ("
            + device.getClass().getName()
            + "), must be one opened by "
            + CudaDeviceProvider.class.getName());
  }

  CudaContext context() {
    return context;
  }

  @Override
  public DeviceInfo info() {
    return context.info();
  }

  @Override
  public DeviceBuffer allocate(long byteSize) {
    return DeviceBuffer.allocate(context, byteSize);
  }

  /**
   * Takes memory from the driver's stream-ordered pool: cheap, and usable by work that follows on
   * {@code stream}.
   *
   * @param byteSize not negative
   * @param stream whose order the memory follows, also when it is closed
   * @return the buffer, owned by the caller
   */
  @Override
  public DeviceBuffer allocate(long byteSize, DeviceStream stream) {
    return DeviceBuffer.allocate(context, byteSize, stream);
  }

  /**
   * Takes page-locked host memory.
   *
   * @param byteSize not negative
   * @return the buffer, owned by the caller
   */
  public PinnedBuffer allocatePinned(long byteSize) {
    return new PinnedBuffer(context, byteSize);
  }

  @Override
  public PinnedBuffer allocateHost(long byteSize) {
    return allocatePinned(byteSize);
  }

  /** {@return bytes of device memory nobody has taken} */
  public long freeBytes() {
    context.makeCurrent();
    long[] free = new long[1];
    Cu.check(JCudaDriver.cuMemGetInfo(free, new long[1]), "cuMemGetInfo");
    return free[0];
  }

  /**
   * {@return bytes of device memory that buffers of this process's opens of the device have taken
   * and not given back; without what the driver itself takes for contexts and kernels}
   */
  public long allocatedBytes() {
    return context.allocated().get();
  }

  /**
   * {@return bytes of page-locked host memory that this process's opens of the device have taken
   * and not given back}
   */
  public long pinnedBytes() {
    return context.pinned().get();
  }

  @Override
  public CudaStream defaultStream() {
    return stream;
  }

  /** {@return a new stream, owned by the caller} */
  @Override
  public CudaStream newStream() {
    return CudaStream.create(context);
  }

  /**
   * {@return whether work enqueued now is recorded into a graph instead of run}
   *
   * @param stream of this device
   */
  public boolean isCapturing(DeviceStream stream) {
    context.makeCurrent();
    return CudaStream.isCapturing(stream);
  }

  /**
   * A stream for work beside that of another: one for each handle, made when first asked for. Who
   * uses it makes it wait for the other, and the other for it, by events; so in a capture of the
   * other it is captured along.
   *
   * @param stream of this device
   * @return a stream of its own, the device's until it closes
   */
  public CudaStream beside(DeviceStream stream) {
    return beside.computeIfAbsent(stream.handle(), h -> newStream());
  }

  /**
   * Another library's stream.
   *
   * @param handle a {@code CUstream} (or {@code cudaStream_t}) of this device; stays its owner's
   * @return a view of it
   */
  public CudaStream wrapStream(long handle) {
    return CudaStream.wrap(context, handle);
  }

  /**
   * Makes the device's context the calling thread's, for another library's calls that act on it.
   */
  public void makeCurrent() {
    context.makeCurrent();
  }

  /**
   * Asks a guard from now on whenever somebody has waited for a stream of this device, or launches
   * a graph that recorded its work.
   *
   * @param guard until {@link #removeGuard}
   */
  public void addGuard(StreamGuard guard) {
    context.guards().add(guard);
  }

  /**
   * Asks a guard no more.
   *
   * @param guard added before, or not
   */
  public void removeGuard(StreamGuard guard) {
    context.guards().remove(guard);
  }

  /**
   * {@return a new event, owned by the caller}
   *
   * @param timing whether it measures time, which costs a little
   */
  public CudaEvent newEvent(boolean timing) {
    return new CudaEvent(context, timing);
  }

  @Override
  public Optional<Timer> newTimer() {
    return Optional.of(new CudaTimer(context));
  }

  @Override
  public Fence fence(DeviceStream stream) {
    return new CudaFence(context, stream);
  }

  /**
   * A kernel, loaded when first asked for and kept until the last open of this device closes. Call
   * it at preparation: loading may compile for milliseconds and cannot happen inside a capture.
   *
   * @param library who carries it
   * @param spec which one, see {@link KernelLibrary#select}
   * @return the kernel
   * @throws io.moe4j.api.DeviceException if the driver cannot compile or load it
   */
  public Kernel kernel(KernelLibrary library, KernelSpec spec) {
    return context.kernel(library, spec);
  }

  /**
   * Copies elements, see {@link Device#copy}. A source in host memory may change once this returns,
   * unless it is page-locked: then it is read when the stream gets there. A destination on the Java
   * heap is complete once this returns.
   */
  @Override
  public void copy(Tensor from, Tensor to, DeviceStream stream) {
    if (from.dtype() != to.dtype() || !Arrays.equals(from.shape(), to.shape())) {
      throw new IllegalArgumentException(
          "cannot copy " + from + " to " + to + ": dtype and shape must agree");
    }
    if (!from.isContiguous() || !to.isContiguous()) {
      throw new IllegalArgumentException(
          "cannot copy " + from + " to " + to + ": both must be contiguous");
    }
    long bytes = from.dtype().byteSize(from.elementCount());
    if (bytes == 0) {
      return;
    }
    requireHere(from);
    requireHere(to);
    context.makeCurrent();
    if (from.isHost() && to.isHost()) {
      MemorySegment.copy(from.segment(), 0, to.segment(), 0, bytes);
    } else if (from.isHost()) {
      MemorySegment source = from.segment();
      if (source.isNative()) {
        HostStaging.copyToDevice(source, to.deviceAddress(), stream);
      } else {
        staging.upload(source, to.deviceAddress(), stream);
      }
    } else if (to.isHost()) {
      MemorySegment target = to.segment();
      if (target.isNative()) {
        HostStaging.copyToHost(from.deviceAddress(), target, stream);
      } else {
        staging.download(from.deviceAddress(), target, stream);
      }
    } else {
      Cu.check(
          CudaDriver.cuMemcpyDtoDAsync_v2(
              to.deviceAddress(), from.deviceAddress(), bytes, CudaStream.segment(stream)),
          "cuMemcpyDtoDAsync",
          () -> bytes + " bytes");
    }
  }

  /**
   * Copies a matrix whose rows may lie apart.
   *
   * @param from {@code [rows, columns]} on this device, the elements of a row side by side
   * @param to the same dtype and shape, likewise; may not overlap {@code from}
   * @param stream where to run
   */
  public void copyRows(Tensor from, Tensor to, DeviceStream stream) {
    if (from.dtype() != to.dtype()
        || from.dims() != 2
        || !Arrays.equals(from.shape(), to.shape())
        || !denseRows(from)
        || !denseRows(to)) {
      throw new IllegalArgumentException(
          "cannot copy "
              + from
              + " to "
              + to
              + ": both must be matrices of one dtype and shape with dense rows");
    }
    if (from.elementCount() == 0) {
      return;
    }
    requireHere(from);
    requireHere(to);
    context.makeCurrent();
    CUDA_MEMCPY2D c = new CUDA_MEMCPY2D();
    c.srcMemoryType = CUmemorytype.CU_MEMORYTYPE_DEVICE;
    c.srcDevice = Handles.wrap(new CUdeviceptr(), from.deviceAddress());
    c.srcPitch = pitch(from);
    c.dstMemoryType = CUmemorytype.CU_MEMORYTYPE_DEVICE;
    c.dstDevice = Handles.wrap(new CUdeviceptr(), to.deviceAddress());
    c.dstPitch = pitch(to);
    c.WidthInBytes = from.dtype().byteSize(from.size(1));
    c.Height = from.size(0);
    Cu.check(
        JCudaDriver.cuMemcpy2DAsync(c, CudaStream.jcuda(stream)),
        "cuMemcpy2DAsync",
        () -> from + " to " + to);
  }

  private static boolean denseRows(Tensor t) {
    return !t.isHost() && (t.size(1) <= 1 || t.stride(1) == 1);
  }

  private static long pitch(Tensor t) {
    return t.dtype().byteSize(t.size(0) == 1 ? t.size(1) : t.stride(0));
  }

  private void requireHere(Tensor tensor) {
    if (tensor.memory() instanceof DeviceMemory m && !m.device().equals(info().id())) {
      throw new IllegalArgumentException(
          tensor + " is on " + m.device() + ", not on " + info().id());
    }
  }

  /**
   * Sets bytes.
   *
   * @param tensor contiguous, on this device
   * @param value written to every byte
   * @param stream where to run
   */
  public void fill(Tensor tensor, int value, DeviceStream stream) {
    if (!tensor.isContiguous()) {
      throw new IllegalArgumentException(tensor + " must be contiguous");
    }
    long bytes = tensor.dtype().byteSize(tensor.elementCount());
    if (bytes > 0) {
      context.makeCurrent();
      Cu.check(
          CudaDriver.cuMemsetD8Async(
              tensor.deviceAddress(), (byte) value, bytes, CudaStream.segment(stream)),
          "cuMemsetD8Async",
          () -> bytes + " bytes of " + tensor);
    }
  }

  @Override
  public Optional<Graph> capture(DeviceStream stream, Runnable work) {
    return Optional.of(CudaGraph.capture(this, stream, work));
  }

  @Override
  public void profiled(DeviceStream stream, Runnable work) {
    stream.synchronize();
    context.makeCurrent();
    Cu.check(JCudaDriver.cuProfilerStart(), "cuProfilerStart");
    try {
      work.run();
      stream.synchronize();
    } finally {
      context.makeCurrent();
      Cu.check(JCudaDriver.cuProfilerStop(), "cuProfilerStop");
    }
  }

  @Override
  public void close() {
    if (closed.compareAndSet(false, true)) {
      staging.close();
      beside.values().forEach(CudaStream::close);
      stream.close();
      context.release();
    }
  }

  /**
   * Like {@code cuda:0 (NVIDIA H200)}.
   *
   * @return id and name
   */
  @Override
  public String toString() {
    return info().id() + " (" + info().name() + ")";
  }
}
