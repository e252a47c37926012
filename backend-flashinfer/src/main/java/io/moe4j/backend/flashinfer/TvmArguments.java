package io.moe4j.backend.flashinfer;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.backend.flashinfer.ffi.DLTensor;
import io.moe4j.backend.flashinfer.ffi.TVMFFIAny;
import io.moe4j.backend.flashinfer.ffi.TvmFfi;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SegmentAllocator;
import org.jspecify.annotations.Nullable;

/**
 * The arguments of one call, packed as TVM-FFI takes them: 16 bytes each, a type index and a value.
 * Tensors and strings are lent for the call: what they point to lies in this object's memory or
 * belongs to somebody who keeps it alive until the call returns. Not thread-safe; close it after
 * the call.
 */
final class TvmArguments implements AutoCloseable {
  private static final int TENSOR_BYTES = 128;

  private final Arena arena = Arena.ofConfined();
  private final SegmentAllocator memory;
  private final MemorySegment array;
  private final MemorySegment result;
  private int count;

  /**
   * @param capacity the most arguments there will be
   */
  TvmArguments(int capacity) {
    long any = TVMFFIAny.sizeof();
    // One piece for all of it: a forward makes a few of these.
    memory =
        SegmentAllocator.slicingAllocator(
            arena.allocate((capacity + 1) * (any + TENSOR_BYTES), Long.BYTES));
    array = memory.allocate(capacity * any, Long.BYTES);
    result = memory.allocate(any, Long.BYTES);
  }

  static TvmArguments none() {
    return new TvmArguments(0);
  }

  private MemorySegment next(int type) {
    MemorySegment any = TVMFFIAny.asSlice(array, count++);
    TVMFFIAny.type_index(any, type);
    return any;
  }

  /** An optional argument that is absent. */
  TvmArguments absent() {
    next(TvmFfi.kTVMFFINone());
    return this;
  }

  /** Several absent ones. */
  TvmArguments absent(int times) {
    for (int i = 0; i < times; i++) {
      absent();
    }
    return this;
  }

  TvmArguments integer(long value) {
    TVMFFIAny.v_int64(next(TvmFfi.kTVMFFIInt()), value);
    return this;
  }

  TvmArguments bool(boolean value) {
    TVMFFIAny.v_int64(next(TvmFfi.kTVMFFIBool()), value ? 1 : 0);
    return this;
  }

  TvmArguments real(double value) {
    TVMFFIAny.v_float64(next(TvmFfi.kTVMFFIFloat()), value);
    return this;
  }

  TvmArguments dtype(DType value) {
    DlTensors.dtype(TVMFFIAny.v_dtype(next(TvmFfi.kTVMFFIDataType())), value);
    return this;
  }

  TvmArguments text(String value) {
    // Strings are rare and of any length: not from the piece that was sized for tensors.
    TVMFFIAny.v_ptr(next(TvmFfi.kTVMFFIRawStr()), arena.allocateFrom(value));
    return this;
  }

  /** A tensor in device memory, lent for the call. */
  TvmArguments tensor(Tensor value) {
    MemorySegment description = DLTensor.allocate(memory);
    DlTensors.describe(value, description, memory);
    TVMFFIAny.v_ptr(next(TvmFfi.kTVMFFIDLTensorPtr()), description);
    return this;
  }

  /** A tensor, or an absent argument. */
  TvmArguments tensorOrAbsent(@Nullable Tensor value) {
    return value == null ? absent() : tensor(value);
  }

  /** An object, lent for the call. */
  TvmArguments object(TvmObject value) {
    TVMFFIAny.v_ptr(next(value.typeIndex()), value.handle());
    return this;
  }

  /** An object, or an absent argument. */
  TvmArguments objectOrAbsent(@Nullable TvmObject value) {
    return value == null ? absent() : object(value);
  }

  MemorySegment array() {
    return array;
  }

  int count() {
    return count;
  }

  /** Where the answer goes, set to nothing. */
  MemorySegment result() {
    return result.fill((byte) 0);
  }

  @Override
  public void close() {
    arena.close();
  }
}
