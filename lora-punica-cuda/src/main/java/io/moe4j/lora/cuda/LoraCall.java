package io.moe4j.lora.cuda;

import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * One call, checked.
 *
 * @param y {@code [T, K, ..]}
 * @param x {@code [T, in]} or {@code [T * K, in]}
 * @param routing null for a dense map
 * @param target the first, or only, of the call's targets
 * @param slices targets, 1 or 2
 * @param out columns of one target
 * @param interleaved whether the columns of two targets alternate
 * @param weighted whether deltas are multiplied by topk weights
 * @param add to y, or overwrite
 * @param tokens {@code T}
 * @param topK {@code K}
 */
record LoraCall(
    MoeLoraContext context,
    Tensor y,
    Tensor x,
    @Nullable ExpertRouting routing,
    LoraTarget target,
    int slices,
    int out,
    boolean interleaved,
    boolean weighted,
    boolean add,
    int tokens,
    int topK,
    DeviceStream stream) {
  private static final int VECTOR_BYTES = 16;

  LoraCall {
    if (!stream.device().type().equals(DeviceType.CUDA)) {
      throw new IllegalArgumentException(
          "stream belongs to " + stream.device() + ", this punica wrapper runs on CUDA devices");
    }
    requireFloat("y", y, 3);
    requireFloat("x", x, 2);
    if (y.size(0) != tokens || y.size(1) != topK || y.size(2) != (long) slices * out) {
      throw new IllegalArgumentException(
          "y is " + y + ", must be [" + tokens + ", " + topK + (slices == 2 ? ", 2I]" : ", out]"));
    }
    boolean perToken = target.isRouted() && target != LoraTarget.DOWN;
    long rows = (long) tokens * topK;
    if (x.size(0) != rows && !(perToken && x.size(0) == tokens)) {
      throw new IllegalArgumentException(
          "x is "
              + x
              + ", must have "
              + (perToken ? tokens + " rows, one a token, or " : "")
              + rows
              + " rows, one a pair");
    }
    if (routing != null) {
      requireDense("topkIds", routing.topkIds());
      if (weighted) {
        requireDense("topkWeights", routing.topkWeights());
      }
      if (routing.expertMap() != null) {
        requireDense("expertMap", routing.expertMap());
      }
    }
    Tensor mapping = context.tokenLoraMapping();
    if (mapping.elementCount() != tokens || mapping.dtype() != DType.I32) {
      throw new IllegalArgumentException(
          "tokenLoraMapping is "
              + mapping
              + ", must be I32 with one entry for each of "
              + tokens
              + " tokens");
    }
    requireDense("tokenLoraMapping", mapping);
  }

  private static void requireFloat(String name, Tensor t, int dims) {
    if (t.dims() != dims || LoraKernels.code(t.dtype()) < 0 || t.isHost()) {
      throw new IllegalArgumentException(
          name
              + " is "
              + t
              + ", must be F32, BF16 or F16 with "
              + dims
              + " dimensions in device memory");
    }
  }

  private static void requireDense(String name, Tensor t) {
    if (t.isHost() || !t.isContiguous()) {
      throw new IllegalArgumentException(
          name + " is " + t + ", must be contiguous in device memory");
    }
  }

  /** The first target's column of the table. */
  int column() {
    return FactorTable.COLUMNS.indexOf(target);
  }

  int pairs() {
    return Math.multiplyExact(tokens, topK);
  }

  int in() {
    return Math.toIntExact(x.size(1));
  }

  int xType() {
    return LoraKernels.code(x.dtype());
  }

  boolean xPerPair() {
    return topK == 1 || x.size(0) != tokens;
  }

  /** Elements from one pair's row of y to the next, or -1 if they are not evenly spaced. */
  long yRow() {
    if (topK == 1) {
      return y.stride(0);
    }
    return tokens == 1 || y.stride(0) == topK * y.stride(1) ? y.stride(1) : -1;
  }

  /** Whether the kernels that read and write 16 bytes at once can serve it. */
  boolean isFast() {
    long row = yRow();
    int vector = VECTOR_BYTES / (int) y.dtype().byteSize(1);
    int width = 8;
    return (x.dtype() == DType.BF16 || x.dtype() == DType.F16)
        && (y.dtype() == x.dtype() || y.dtype() == DType.F32)
        && in() % width == 0
        && x.stride(1) == 1
        && (x.stride(0) % width == 0 || x.size(0) == 1)
        && x.deviceAddress() % VECTOR_BYTES == 0
        && y.stride(2) == 1
        && row >= 0
        && row % vector == 0
        && y.deviceAddress() % VECTOR_BYTES == 0
        && out % (interleaved && slices > 1 ? width / 2 : width) == 0;
  }
}
