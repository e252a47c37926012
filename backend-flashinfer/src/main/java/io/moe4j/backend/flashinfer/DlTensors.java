package io.moe4j.backend.flashinfer;

import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.backend.flashinfer.ffi.DLDataType;
import io.moe4j.backend.flashinfer.ffi.DLDevice;
import io.moe4j.backend.flashinfer.ffi.DLTensor;
import io.moe4j.backend.flashinfer.ffi.TVMFFIObject;
import io.moe4j.backend.flashinfer.ffi.TvmFfi;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SegmentAllocator;
import java.lang.foreign.ValueLayout;

/**
 * DLPack's description of a tensor over our memory: the elements stay where they are. Who keeps the
 * memory alive is whoever owns it, as for {@link Tensor}.
 */
final class DlTensors {
  private DlTensors() {}

  /**
   * Writes a description.
   *
   * @param tensor in device memory
   * @param at a {@code DLTensor}, overwritten
   * @param memory where shape and strides are put; lives as long as {@code at}
   */
  static void describe(Tensor tensor, MemorySegment at, SegmentAllocator memory) {
    if (!(tensor.memory() instanceof DeviceMemory device)) {
      throw new IllegalArgumentException(tensor + " is in host memory, must be on a device");
    }
    int dims = tensor.dims();
    // Some readers take the address without the offset, so the offset is in the address.
    DLTensor.data(at, MemorySegment.ofAddress(tensor.deviceAddress()));
    DLTensor.byte_offset(at, 0);
    device(DLTensor.device(at), device.device());
    DLTensor.ndim(at, dims);
    dtype(DLTensor.dtype(at), tensor.dtype());
    MemorySegment sizes = memory.allocate(ValueLayout.JAVA_LONG, 2L * dims);
    for (int d = 0; d < dims; d++) {
      sizes.setAtIndex(ValueLayout.JAVA_LONG, d, tensor.size(d));
      sizes.setAtIndex(ValueLayout.JAVA_LONG, dims + d, tensor.stride(d));
    }
    DLTensor.shape(at, sizes);
    DLTensor.strides(at, sizes.asSlice(Long.BYTES * (long) dims));
  }

  /**
   * Writes a description of new memory, without gaps, as a prototype asks for it.
   *
   * @param prototype dtype, device and shape
   * @param address of the memory
   * @param at a {@code DLTensor}, overwritten
   * @param memory where shape and strides are put
   */
  static void fill(
      MemorySegment prototype, long address, MemorySegment at, SegmentAllocator memory) {
    int dims = DLTensor.ndim(prototype);
    DLTensor.data(at, MemorySegment.ofAddress(address));
    DLTensor.byte_offset(at, 0);
    DLTensor.device(at, DLTensor.device(prototype));
    DLTensor.dtype(at, DLTensor.dtype(prototype));
    DLTensor.ndim(at, dims);
    MemorySegment shape = DLTensor.shape(prototype);
    MemorySegment sizes = memory.allocate(ValueLayout.JAVA_LONG, 2L * dims);
    long stride = 1;
    for (int d = dims - 1; d >= 0; d--) {
      long size = shape.getAtIndex(ValueLayout.JAVA_LONG, d);
      sizes.setAtIndex(ValueLayout.JAVA_LONG, d, size);
      sizes.setAtIndex(ValueLayout.JAVA_LONG, dims + d, stride);
      stride = Math.multiplyExact(stride, Math.max(1, size));
    }
    DLTensor.shape(at, sizes);
    DLTensor.strides(at, sizes.asSlice(Long.BYTES * (long) dims));
  }

  /**
   * Our view of a tensor object of TVM-FFI's, valid while the object is open.
   *
   * @param object a tensor, in memory of {@code device}
   * @param device where it must be
   * @return the tensor, contiguous
   */
  static Tensor view(TvmObject object, DeviceId device) {
    MemorySegment at =
        object
            .handle()
            .reinterpret(TVMFFIObject.sizeof() + DLTensor.sizeof())
            .asSlice(TVMFFIObject.sizeof());
    MemorySegment where = DLTensor.device(at);
    if (DLDevice.device_type(where) != TvmFfi.kDLCUDA()
        || DLDevice.device_id(where) != device.ordinal()) {
      throw new IllegalArgumentException(
          "a tensor on device "
              + DLDevice.device_type(where)
              + ":"
              + DLDevice.device_id(where)
              + " in a call on "
              + device);
    }
    long[] shape = new long[DLTensor.ndim(at)];
    MemorySegment sizes = DLTensor.shape(at).reinterpret((long) Long.BYTES * shape.length);
    for (int d = 0; d < shape.length; d++) {
      shape[d] = sizes.getAtIndex(ValueLayout.JAVA_LONG, d);
    }
    long address = DLTensor.data(at).address() + DLTensor.byte_offset(at);
    return Tensor.of(
        dtypeOf(DLTensor.dtype(at)), new DeviceMemory(device, address, byteSize(at)), shape);
  }

  private static DType dtypeOf(MemorySegment dtype) {
    int code = Byte.toUnsignedInt(DLDataType.code(dtype));
    int bits = Byte.toUnsignedInt(DLDataType.bits(dtype));
    if (code == TvmFfi.kDLBfloat() && bits == DType.BF16.bits()) {
      return DType.BF16;
    }
    if (code == TvmFfi.kDLInt() && bits == DType.I32.bits()) {
      return DType.I32;
    }
    throw new IllegalArgumentException(
        "FlashInfer answered with a tensor of type " + code + ":" + bits + ", not BF16 or I32");
  }

  static void device(MemorySegment at, DeviceId device) {
    if (!device.type().equals(DeviceType.CUDA)) {
      throw new IllegalArgumentException("device is " + device + ", must be a CUDA device");
    }
    DLDevice.device_type(at, TvmFfi.kDLCUDA());
    DLDevice.device_id(at, device.ordinal());
  }

  static void dtype(MemorySegment at, DType dtype) {
    int code =
        switch (dtype) {
          case F64, F32, F16 -> TvmFfi.kDLFloat();
          case BF16 -> TvmFfi.kDLBfloat();
          case F8_E4M3 -> TvmFfi.kDLFloat8_e4m3fn();
          case I64, I32, I16, I8 -> TvmFfi.kDLInt();
          case U64, U32, U16, U8 -> TvmFfi.kDLUInt();
          // FlashInfer takes these as bytes, and the caller says so with a U8 tensor.
          case F8_E5M2, F8_E8M0, F4, BOOL ->
              throw new IllegalArgumentException(
                  "dtype " + dtype + " is none that FlashInfer takes; view the bytes as U8");
        };
    DLDataType.code(at, (byte) code);
    DLDataType.bits(at, (byte) dtype.bits());
    DLDataType.lanes(at, (short) 1);
  }

  /** {@return the bytes that a description without gaps takes} */
  static long byteSize(MemorySegment tensor) {
    MemorySegment dtype = DLTensor.dtype(tensor);
    long bits =
        Math.multiplyExact(
            (long) Byte.toUnsignedInt(DLDataType.bits(dtype)),
            Short.toUnsignedLong(DLDataType.lanes(dtype)));
    long count = 1;
    int dims = DLTensor.ndim(tensor);
    MemorySegment shape = DLTensor.shape(tensor);
    for (int d = 0; d < dims; d++) {
      count = Math.multiplyExact(count, shape.getAtIndex(ValueLayout.JAVA_LONG, d));
    }
    return Math.ceilDiv(Math.multiplyExact(count, bits), Byte.SIZE);
  }
}
