package io.moe4j.backend.flashinfer;

import io.moe4j.backend.flashinfer.ffi.TVMFFIObject;
import io.moe4j.backend.flashinfer.ffi.TvmFfi;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.concurrent.atomic.AtomicBoolean;

/**
 * One counted reference to an object of TVM-FFI; closing gives it back. Safe for several threads,
 * as long as none closes what another still passes to a call.
 */
class TvmObject implements AutoCloseable {
  private final MemorySegment handle;
  private final AtomicBoolean closed = new AtomicBoolean();

  /**
   * @param handle whose reference becomes this one's
   */
  TvmObject(MemorySegment handle) {
    this.handle = handle.reinterpret(TVMFFIObject.sizeof());
  }

  /** {@return the handle, to pass on while this is open} */
  final MemorySegment handle() {
    if (closed.get()) {
      throw new IllegalStateException("a " + getClass().getSimpleName() + " was used after close");
    }
    return handle;
  }

  /** {@return TVM-FFI's index of the object's type} */
  final int typeIndex() {
    return TVMFFIObject.type_index(handle());
  }

  /** {@return how many strong references there are; for tests} */
  final long references() {
    long counts =
        (long)
            ValueLayout.JAVA_LONG
                .varHandle()
                .getVolatile(handle(), TVMFFIObject.combined_ref_count$offset());
    return counts & 0xFFFF_FFFFL;
  }

  @Override
  public final void close() {
    if (closed.compareAndSet(false, true)) {
      release(handle);
    }
  }

  /** Gives back a reference that nobody holds as an object of this class. */
  static void release(MemorySegment handle) {
    TvmErrors.check(TvmFfi.TVMFFIObjectDecRef(handle), "TVMFFIObjectDecRef");
  }
}
