package io.moe4j.cuda.ops;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;

/**
 * Between a caller's tensors and what the kernels read and write: rows of whole vectors, 16-byte
 * aligned, in the weights' dtype (F32 as well on the way out). Where the caller's are like that
 * they are used as they lie. Safe for several threads.
 *
 * @since 0.2.0
 */
public final class PaddedTensors {
  private static final int ALIGNMENT = 16;

  private final CudaDevice device;
  private final PackKernel pack;
  private final ElementwiseKernels casts;
  private final DType type;
  private final int width;
  private final int padded;
  private final boolean batched;

  /**
   * @param device where to run
   * @param kernels where they are
   * @param config of the layer, with weights of BF16 or F16
   * @param batched whether rows of an output past an expert's count must come back as they were
   */
  public PaddedTensors(
      CudaDevice device, ExpertKernels kernels, MoeConfig config, boolean batched) {
    this.device = device;
    this.pack = new PackKernel(kernels, config.weightDtype());
    this.casts = new ElementwiseKernels(device);
    this.type = config.weightDtype();
    this.width = config.expertHiddenSize();
    this.padded = PaddedSizes.of(config).hidden();
    this.batched = batched;
  }

  /**
   * {@return whether hidden states need room of their own}
   *
   * @param hidden the caller's
   */
  public boolean movesIn(Tensor hidden) {
    return hidden.dtype() != type || !direct(hidden);
  }

  /**
   * {@return bytes that an element of the output takes in room of its own; 0 where it needs none}
   *
   * @param output the caller's
   */
  public int bytesOut(Tensor output) {
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
   * @param hidden the caller's
   * @param rows of it
   * @param room offset in the workspace, for {@code rows} rows, where {@link #movesIn}
   * @param workspace of the call
   * @param stream where to run
   */
  public long in(Tensor hidden, long rows, long room, Workspace workspace, DeviceStream stream) {
    if (!movesIn(hidden)) {
      return hidden.deviceAddress();
    }
    Tensor to = workspace.tensor(room, type, rows, padded);
    if (width == padded) {
      casts.cast(hidden.reshape(rows, width), to, stream);
    } else {
      pack.run(hidden.reshape(1, rows, width), 1, to.deviceAddress(), rows, padded, stream);
    }
    return to.deviceAddress();
  }

  /**
   * {@return where the kernels write}
   *
   * @param output the caller's
   * @param rows of it
   * @param room offset in the workspace, where {@link #bytesOut} is not 0
   * @param spare offset of room for {@code rows} padded rows of 16 bits
   * @param workspace of the call
   * @param stream where to run
   */
  public Tensor target(
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
   * @param target what {@link #target} gave
   * @param output the caller's
   * @param rows of it
   * @param spare as for {@link #target}
   * @param workspace of the call
   * @param stream where to run
   */
  public void out(
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
