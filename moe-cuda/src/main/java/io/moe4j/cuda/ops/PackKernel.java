package io.moe4j.cuda.ops;

import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;

/**
 * Copies matrices of any strides and float type to dense ones of BF16 or F16 with zeros around
 * them, so that rows are whole numbers of 16-byte vectors; see {@code sort.py}. Safe for several
 * threads.
 *
 * @since 0.2.0
 */
public final class PackKernel {
  private static final int BLOCK = 1024;

  private final ExpertKernels kernels;
  private final String type;

  /**
   * @param kernels where they are
   * @param type of what is written, BF16 or F16
   */
  public PackKernel(ExpertKernels kernels, DType type) {
    this.kernels = kernels;
    this.type = SharedKernels.name(type);
  }

  /**
   * Packs.
   *
   * @param from {@code [matrices, rows, columns]}, F32, BF16 or F16, on the device
   * @param matrices how many of them, from the first
   * @param to address of {@code [matrices, toRows, toColumns]}, overwritten
   * @param toRows at least {@code rows}
   * @param toColumns at least {@code columns}
   * @param stream where to run
   */
  public void run(
      Tensor from, long matrices, long to, long toRows, long toColumns, DeviceStream stream) {
    long n = Math.multiplyExact(Math.multiplyExact(matrices, toRows), toColumns);
    kernels
        .get("pack", "in", SharedKernels.name(from.dtype()), "type", type)
        .begin()
        .pointer(from.deviceAddress())
        .pointer(to)
        .i64(n)
        .i32((int) from.size(1))
        .i32((int) from.size(2))
        .i32((int) toRows)
        .i32((int) toColumns)
        .i64(from.stride(0))
        .i64(from.stride(1))
        .i64(from.stride(2))
        .launch(stream, Math.toIntExact(Math.ceilDiv(n, BLOCK)));
  }
}
