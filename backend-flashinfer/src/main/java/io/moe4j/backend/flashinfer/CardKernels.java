package io.moe4j.backend.flashinfer;

import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.Kernel;
import io.moe4j.cuda.KernelLibrary;
import io.moe4j.cuda.ops.ElementwiseKernels;
import java.util.EnumMap;
import java.util.Map;

/** What stands between a layer's tensors and FlashInfer's, as kernels of ours. */
interface CardKernels {
  /**
   * Converts element by element, rounding to nearest even.
   *
   * @param in F32, BF16 or F16
   * @param out as many elements, likewise
   * @param stream where to run
   */
  void cast(Tensor in, Tensor out, DeviceStream stream);

  /**
   * {@code e4m3(x / scale)}, to nearest even, saturating.
   *
   * @param in F32, BF16 or F16, contiguous
   * @param out F8_E4M3, as many elements
   * @param scale one F32 number on the device
   * @param stream where to run
   */
  void quantize(Tensor in, Tensor out, Tensor scale, DeviceStream stream);

  /** {@return the kernels of a CUDA device, loaded} */
  static CardKernels of(Device device) {
    return new OnCuda(CudaDevice.of(device));
  }

  /** The real ones. */
  final class OnCuda implements CardKernels {
    private static final int THREADS = 256;
    private static final int PER_THREAD = 4;
    private static final int MOST_BLOCKS = 1024;

    private final ElementwiseKernels elementwise;
    private final Map<DType, Kernel> quantize = new EnumMap<>(DType.class);

    private OnCuda(CudaDevice device) {
      elementwise = new ElementwiseKernels(device);
      KernelLibrary library = KernelLibrary.of(CardKernels.class, "backend-flashinfer-cuda");
      for (Map.Entry<DType, String> type :
          Map.of(DType.F32, "f32", DType.BF16, "bf16", DType.F16, "f16").entrySet()) {
        quantize.put(
            type.getKey(),
            device.kernel(
                library, library.select(device.info(), "quantize", Map.of("in", type.getValue()))));
      }
    }

    @Override
    public void cast(Tensor in, Tensor out, DeviceStream stream) {
      elementwise.cast(in, out, stream);
    }

    @Override
    public void quantize(Tensor in, Tensor out, Tensor scale, DeviceStream stream) {
      Kernel kernel = quantize.get(in.dtype());
      if (kernel == null) {
        throw new IllegalArgumentException("input is " + in + ", must be F32, BF16 or F16");
      }
      long n = in.elementCount();
      long blocks = Math.ceilDiv(n, (long) THREADS * PER_THREAD);
      kernel
          .begin()
          .pointer(in)
          .pointer(out)
          .pointer(scale)
          .i64(n)
          .launch(stream, (int) Math.min(MOST_BLOCKS, blocks));
    }
  }
}
