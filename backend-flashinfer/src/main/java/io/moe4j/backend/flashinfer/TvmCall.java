package io.moe4j.backend.flashinfer;

import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.backend.flashinfer.ffi.DLDevice;
import io.moe4j.backend.flashinfer.ffi.DLPackManagedTensorAllocator;
import io.moe4j.backend.flashinfer.ffi.DLTensor;
import io.moe4j.backend.flashinfer.ffi.TvmFfi;
import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandle;
import org.jspecify.annotations.Nullable;

/**
 * What a module finds when it asks TVM-FFI for the stream to launch on and for device memory: both
 * belong to the calling thread. Open one around calls and close it on the same thread; what was set
 * before is set again then, so that others who call modules in this process lose nothing.
 *
 * <p>Memory that a module asks for comes from the device's stream-ordered pool and goes back behind
 * the stream's work when the module drops it.
 */
final class TvmCall implements AutoCloseable {
  private static final ThreadLocal<@Nullable TvmCall> CURRENT = new ThreadLocal<>();
  private static final MemorySegment ALLOCATOR =
      DLPackManagedTensorAllocator.allocate(TvmCall::allocateFromNative, Arena.global());

  /** {@code void (*)(void* context, const char* kind, const char* message)}. */
  private static final MethodHandle SET_ERROR =
      Linker.nativeLinker()
          .downcallHandle(
              FunctionDescriptor.ofVoid(
                  ValueLayout.ADDRESS, ValueLayout.ADDRESS, ValueLayout.ADDRESS));

  private final Device device;
  private final DeviceStream stream;
  private final int ordinal;
  private final MemorySegment streamBefore;
  private final MemorySegment allocatorBefore;
  private final @Nullable TvmCall outer;

  private TvmCall(Device device, DeviceStream stream) {
    this.device = device;
    this.stream = stream;
    this.ordinal = stream.device().ordinal();
    this.outer = CURRENT.get();
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment slot = arena.allocate(ValueLayout.ADDRESS);
      TvmErrors.check(
          TvmFfi.TVMFFIEnvSetStream(
              TvmFfi.kDLCUDA(), ordinal, MemorySegment.ofAddress(stream.handle()), slot),
          "TVMFFIEnvSetStream");
      streamBefore = slot.get(ValueLayout.ADDRESS, 0);
      int result = TvmFfi.TVMFFIEnvSetDLPackManagedTensorAllocator(ALLOCATOR, 0, slot);
      if (result != 0) {
        TvmFfi.TVMFFIEnvSetStream(TvmFfi.kDLCUDA(), ordinal, streamBefore, MemorySegment.NULL);
      }
      TvmErrors.check(result, "TVMFFIEnvSetDLPackManagedTensorAllocator");
      allocatorBefore = slot.get(ValueLayout.ADDRESS, 0);
    }
    CURRENT.set(this);
  }

  /**
   * Sets a stream and an allocator for this thread.
   *
   * @param device where memory comes from
   * @param stream of that device
   * @return to be closed on this thread
   */
  static TvmCall on(Device device, DeviceStream stream) {
    DeviceId here = device.info().id();
    if (!stream.device().equals(here)) {
      throw new IllegalArgumentException("given the " + stream + ", needed a stream of " + here);
    }
    return new TvmCall(device, stream);
  }

  @Override
  public void close() {
    if (CURRENT.get() != this) {
      throw new IllegalStateException("calls must be closed in turn, by the thread they belong to");
    }
    if (outer == null) {
      CURRENT.remove();
    } else {
      CURRENT.set(outer);
    }
    TvmErrors.check(
        TvmFfi.TVMFFIEnvSetDLPackManagedTensorAllocator(allocatorBefore, 0, MemorySegment.NULL),
        "TVMFFIEnvSetDLPackManagedTensorAllocator");
    TvmErrors.check(
        TvmFfi.TVMFFIEnvSetStream(TvmFfi.kDLCUDA(), ordinal, streamBefore, MemorySegment.NULL),
        "TVMFFIEnvSetStream");
  }

  private static int allocateFromNative(
      MemorySegment prototype, MemorySegment out, MemorySegment context, MemorySegment setError) {
    // An exception that leaves an upcall ends the process, so all of them become the call's error.
    try {
      TvmCall call = CURRENT.get();
      if (call == null) {
        throw new IllegalStateException("a module asked for memory outside of a call of moe4j");
      }
      MemorySegment managed = call.allocate(prototype.reinterpret(DLTensor.sizeof()));
      out.reinterpret(ValueLayout.ADDRESS.byteSize()).set(ValueLayout.ADDRESS, 0, managed);
      return 0;
    } catch (RuntimeException | Error e) {
      return fail(e, context, setError);
    }
  }

  private static int fail(Throwable why, MemorySegment context, MemorySegment setError) {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment kind = arena.allocateFrom("RuntimeError");
      MemorySegment message = arena.allocateFrom(String.valueOf(why.getMessage()));
      SET_ERROR.invokeExact(setError, context, kind, message);
    } catch (Throwable _) {
      // Without its text the error is still one.
    }
    return -1;
  }

  private MemorySegment allocate(MemorySegment prototype) {
    MemorySegment where = DLTensor.device(prototype);
    if (DLDevice.device_type(where) != TvmFfi.kDLCUDA() || DLDevice.device_id(where) != ordinal) {
      throw new IllegalArgumentException(
          "a module asked for memory on device "
              + DLDevice.device_type(where)
              + ":"
              + DLDevice.device_id(where)
              + " in a call on "
              + stream.device());
    }
    Device.Buffer buffer = device.allocate(DlTensors.byteSize(prototype), stream);
    try {
      return ManagedTensors.likePrototype(
          prototype, ((DeviceMemory) buffer.memory()).address(), buffer::close);
    } catch (RuntimeException | Error e) {
      buffer.close();
      throw e;
    }
  }
}
