package io.moe4j.backend.triton;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.ElementwiseKernels;

/**
 * Between a caller's tensors and what the kernels read and write: rows of whole vectors, 16-byte
 * aligned, in the weights' dtype (F32 as well on the way out). Where the caller's are like that
 * they are used as they lie.
 */
final class Borders {
  private static final int ALIGNMENT = 16;
  private static final int PACK_BLOCK = 1024;

  private final CudaDevice device;
  private final TritonKernels kernels;
  private final ElementwiseKernels casts;
  private final DType type;
  private final int width;
  private final int padded;
  private final boolean batched;

  Borders(CudaDevice device, TritonKernels kernels, MoeConfig config, boolean batched) {
    this.device = device;
    this.kernels = kernels;
    this.casts = new ElementwiseKernels(device);
    this.type = config.weightDtype();
    this.width = config.expertHiddenSize();
    this.padded = Widths.of(config).hidden();
    this.batched = batched;
  }

  /** Whether hidden states need room of their own. */
  boolean movesIn(Tensor hidden) {
    return hidden.dtype() != type || !direct(hidden);
  }

  /** Bytes an element of the output takes in room of its own; 0 where it needs none. */
  int bytesOut(Tensor output) {
    return kernelType(output) == output.dtype() && direct(output)
        ? 0
        : Math.toIntExact(kernelType(output).byteSize(1));
  }

  private boolean direct(Tensor t) {
    return width == padded && t.deviceAddress() % ALIGNMENT == 0;
  }

  private DType kernelType(Tensor output) {
    DType d = output.dtype();
    if (d == type || d == DType.F32) {
      return d;
    }
    if (d != DType.F16 && d != DType.BF16) {
      throw new IllegalArgumentException("output is " + output + ", must be F32, BF16 or F16");
    }
    return DType.F32;
  }

  /**
   * {@return the address that the kernels read hidden states from}
   *
   * @param room offset in the workspace, for {@code rows} rows, where {@link #movesIn}
   */
  long in(Tensor hidden, long rows, long room, Workspace workspace, DeviceStream stream) {
    if (!movesIn(hidden)) {
      return hidden.deviceAddress();
    }
    Tensor to = workspace.tensor(room, type, rows, padded);
    if (width == padded) {
      casts.cast(hidden.reshape(rows, width), to, stream);
    } else {
      long n = rows * padded;
      kernels
          .get("pack", "in", TritonKernels.type(hidden.dtype()), "type", TritonKernels.type(type))
          .begin()
          .pointer(hidden.deviceAddress())
          .pointer(to.deviceAddress())
          .i64(n)
          .i32(Math.toIntExact(rows))
          .i32(width)
          .i32(Math.toIntExact(rows))
          .i32(padded)
          .i64(0)
          .i64(width)
          .i64(1)
          .launch(stream, Math.toIntExact(Math.ceilDiv(n, PACK_BLOCK)));
    }
    return to.deviceAddress();
  }

  /**
   * {@return where the kernels write}
   *
   * @param room offset in the workspace, where {@link #bytesOut} is not 0
   * @param spare offset of room for {@code rows} padded rows of 16 bits
   */
  Tensor target(
      Tensor output, long rows, long room, long spare, Workspace workspace, DeviceStream stream) {
    if (bytesOut(output) == 0) {
      return output;
    }
    Tensor target = workspace.tensor(room, kernelType(output), rows, padded);
    if (batched) {
      // Rows past the counts come back as they were.
      boolean same = target.dtype() == output.dtype();
      Tensor to = same ? target : workspace.tensor(spare, output.dtype(), rows, padded);
      device.copyRows(output.reshape(rows, width), to.narrow(1, 0, width), stream);
      if (!same) {
        casts.cast(to, target, stream);
      }
    }
    return target;
  }

  /**
   * Brings a result to its place.
   *
   * @param spare as for {@link #target}
   */
  void out(
      Tensor target,
      Tensor output,
      long rows,
      long spare,
      Workspace workspace,
      DeviceStream stream) {
    if (bytesOut(output) == 0) {
      return;
    }
    Tensor from = target;
    if (target.dtype() != output.dtype()) {
      from = workspace.tensor(spare, output.dtype(), rows, padded);
      casts.cast(target, from, stream);
    }
    device.copyRows(from.narrow(1, 0, width), output.reshape(rows, width), stream);
  }
}
