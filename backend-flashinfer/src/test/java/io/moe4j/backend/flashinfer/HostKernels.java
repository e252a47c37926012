package io.moe4j.backend.flashinfer;

import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/** The kernels around FlashInfer's, on the memory of a {@link HostCuda}. */
final class HostKernels implements CardKernels {
  @Override
  public void cast(Tensor in, Tensor out, DeviceStream stream) {
    MemorySegment from = HostCuda.bytes(in);
    MemorySegment to = HostCuda.bytes(out);
    for (long i = 0; i < in.elementCount(); i++) {
      float v = read(from, in.dtype(), i);
      switch (out.dtype()) {
        case F32 -> to.setAtIndex(ValueLayout.JAVA_FLOAT_UNALIGNED, i, v);
        case BF16 -> to.setAtIndex(ValueLayout.JAVA_SHORT_UNALIGNED, i, Tensor.toBFloat16(v));
        case F16 -> to.setAtIndex(ValueLayout.JAVA_SHORT_UNALIGNED, i, Float.floatToFloat16(v));
        default -> throw new IllegalArgumentException("output is " + out);
      }
    }
  }

  @Override
  public void quantize(Tensor in, Tensor out, Tensor scale, DeviceStream stream) {
    MemorySegment from = HostCuda.bytes(in);
    MemorySegment to = HostCuda.bytes(out);
    float s = read(HostCuda.bytes(scale), DType.F32, 0);
    for (long i = 0; i < in.elementCount(); i++) {
      to.set(ValueLayout.JAVA_BYTE, i, E4m3.of(read(from, in.dtype(), i) / s));
    }
  }

  private static float read(MemorySegment from, DType dtype, long i) {
    return switch (dtype) {
      case F32 -> from.getAtIndex(ValueLayout.JAVA_FLOAT_UNALIGNED, i);
      case BF16 -> Float.intBitsToFloat(from.getAtIndex(ValueLayout.JAVA_SHORT_UNALIGNED, i) << 16);
      case F16 -> Float.float16ToFloat(from.getAtIndex(ValueLayout.JAVA_SHORT_UNALIGNED, i));
      default -> throw new IllegalArgumentException("input is " + dtype);
    };
  }
}
