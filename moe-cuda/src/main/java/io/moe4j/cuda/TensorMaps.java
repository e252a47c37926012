package io.moe4j.cuda;

import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.ffi.CUtensorMap_st;
import io.moe4j.cuda.ffi.CudaDriver;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/**
 * TMA descriptors (compute capability 9.0 and later): a {@code CUtensorMap} of a row-major matrix,
 * encoded on the host once and passed to kernels by value.
 */
public final class TensorMaps {
  private TensorMaps() {}

  /** How rows of a box are spread over shared memory; what the kernel was compiled for. */
  public enum Swizzle {
    /** Row after row. */
    NONE,
    /** 32-byte rows. */
    BYTES_32,
    /** 64-byte rows. */
    BYTES_64,
    /** 128-byte rows. */
    BYTES_128
  }

  /**
   * Describes a matrix.
   *
   * @param matrix {@code [rows, columns]} on a device, F32, BF16, F16 or U8, rows dense; its
   *     address and row stride in bytes are multiples of 16
   * @param boxRows rows a copy moves, 1..256
   * @param boxColumns columns a copy moves, 1..256; with a swizzle no wider than it
   * @param swizzle layout in shared memory
   * @param arena owns the descriptor
   * @return the 128 bytes, for {@link KernelLaunch#tensorMap}
   * @throws IllegalArgumentException if the matrix or box breaks one of these limits
   */
  public static MemorySegment matrix(
      Tensor matrix, int boxRows, int boxColumns, Swizzle swizzle, Arena arena) {
    if (matrix.dims() != 2 || (matrix.size(1) > 1 && matrix.stride(1) != 1)) {
      throw new IllegalArgumentException(matrix + " must be [rows, columns] with dense rows");
    }
    int type =
        switch (matrix.dtype()) {
          case F32 -> CudaDriver.CU_TENSOR_MAP_DATA_TYPE_FLOAT32();
          case BF16 -> CudaDriver.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16();
          case F16 -> CudaDriver.CU_TENSOR_MAP_DATA_TYPE_FLOAT16();
          case U8 -> CudaDriver.CU_TENSOR_MAP_DATA_TYPE_UINT8();
          default -> throw new IllegalArgumentException(matrix + " must be F32, BF16, F16 or U8");
        };
    long rowBytes = matrix.dtype().byteSize(matrix.stride(0));
    if (matrix.deviceAddress() % 16 != 0 || rowBytes % 16 != 0) {
      throw new IllegalArgumentException(
          matrix
              + " begins at 0x"
              + Long.toHexString(matrix.deviceAddress())
              + " with rows "
              + rowBytes
              + " bytes apart; both must be multiples of 16");
    }
    MemorySegment map = arena.allocate(CUtensorMap_st.sizeof(), ParamType.TENSOR_MAP.alignment());
    try (Arena scratch = Arena.ofConfined()) {
      MemorySegment dims =
          scratch.allocateFrom(ValueLayout.JAVA_LONG, matrix.size(1), matrix.size(0));
      MemorySegment strides = scratch.allocateFrom(ValueLayout.JAVA_LONG, rowBytes);
      MemorySegment box = scratch.allocateFrom(ValueLayout.JAVA_INT, boxColumns, boxRows);
      MemorySegment steps = scratch.allocateFrom(ValueLayout.JAVA_INT, 1, 1);
      int mode =
          switch (swizzle) {
            case NONE -> CudaDriver.CU_TENSOR_MAP_SWIZZLE_NONE();
            case BYTES_32 -> CudaDriver.CU_TENSOR_MAP_SWIZZLE_32B();
            case BYTES_64 -> CudaDriver.CU_TENSOR_MAP_SWIZZLE_64B();
            case BYTES_128 -> CudaDriver.CU_TENSOR_MAP_SWIZZLE_128B();
          };
      Cu.check(
          CudaDriver.cuTensorMapEncodeTiled(
              map,
              type,
              2,
              MemorySegment.ofAddress(matrix.deviceAddress()),
              dims,
              strides,
              box,
              steps,
              CudaDriver.CU_TENSOR_MAP_INTERLEAVE_NONE(),
              mode,
              CudaDriver.CU_TENSOR_MAP_L2_PROMOTION_L2_128B(),
              CudaDriver.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE()),
          "cuTensorMapEncodeTiled",
          () -> matrix + ", box " + boxRows + "x" + boxColumns + ", swizzle " + swizzle);
    }
    return map;
  }
}
