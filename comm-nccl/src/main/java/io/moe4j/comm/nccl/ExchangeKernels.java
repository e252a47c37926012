package io.moe4j.comm.nccl;

import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.spi.ExchangeInputs;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.Kernel;
import io.moe4j.cuda.KernelLibrary;
import io.moe4j.cuda.ops.ElementwiseKernels;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/** What stands between a layer's tensors and the rows that ranks exchange. */
interface ExchangeKernels {
  /**
   * A rank's rows as they travel, {@code n} of each.
   *
   * @param hidden {@code [n, H]}
   * @param ids int32 {@code [n, K]}
   * @param weights F32 {@code [n, K]}
   * @param slots int32 {@code [n]}, null without adapters
   */
  record Rows(Tensor hidden, Tensor ids, Tensor weights, @Nullable Tensor slots) {}

  /**
   * Copies a rank's tokens and fills up with rows that have no expert and no adapter.
   *
   * @param inputs {@code T} tokens
   * @param rows overwritten; {@code n >= T}
   */
  void pad(ExchangeInputs inputs, Rows rows, DeviceStream stream);

  /**
   * Takes out the pairs that another rank computes.
   *
   * @param ids int32 {@code [R, K]}, changed in place
   * @param owner int32 {@code [expert-parallel ranks, E]}: which rank computes an expert
   * @param rows that belong together: row {@code r} has the owners of {@code r / rows}
   * @param me this expert-parallel rank
   */
  void own(Tensor ids, Tensor owner, long rows, int me, DeviceStream stream);

  /** Converts element by element, rounding to nearest even. */
  void cast(Tensor in, Tensor out, DeviceStream stream);

  /** {@return the kernels of a CUDA device, loaded} */
  static ExchangeKernels of(Device device) {
    return new OnCuda(CudaDevice.of(device));
  }

  /** The real ones. */
  final class OnCuda implements ExchangeKernels {
    private static final int THREADS = 256;
    private static final int MOST_BLOCKS = 1024;
    private static final int VECTOR_BYTES = 16;

    private final CudaDevice device;
    private final ElementwiseKernels elementwise;
    private final Kernel pad;
    private final Kernel own;

    private OnCuda(CudaDevice device) {
      this.device = device;
      elementwise = new ElementwiseKernels(device);
      KernelLibrary library = KernelLibrary.of(ExchangeKernels.class, "comm-nccl-cuda");
      pad = device.kernel(library, library.select(device.info(), "pad", Map.of()));
      own = device.kernel(library, library.select(device.info(), "own", Map.of()));
    }

    @Override
    public void pad(ExchangeInputs inputs, Rows rows, DeviceStream stream) {
      long n = rows.hidden().size(0);
      if (n == 0) {
        return;
      }
      Tensor hidden = inputs.hidden();
      long rowBytes = hidden.dtype().byteSize(hidden.size(1));
      if (rowBytes % VECTOR_BYTES != 0 || hidden.deviceAddress() % VECTOR_BYTES != 0) {
        padInParts(inputs, rows, stream);
        return;
      }
      pad.begin()
          .pointer(hidden)
          .pointer(inputs.routing().topkIds())
          .pointer(inputs.routing().topkWeights())
          .pointer(inputs.tokenLoraMapping())
          .pointer(rows.hidden())
          .pointer(rows.ids())
          .pointer(rows.weights())
          .pointer(rows.slots())
          .i32(Math.toIntExact(hidden.size(0)))
          .i32(Math.toIntExact(rows.ids().size(1)))
          .i32(Math.toIntExact(rowBytes / VECTOR_BYTES))
          .launch(stream, Math.toIntExact(n));
    }

    /** For rows of odd widths, by copies. All bits set is -1. */
    private void padInParts(ExchangeInputs inputs, Rows rows, DeviceStream stream) {
      part(inputs.hidden(), rows.hidden(), 0, stream);
      part(inputs.routing().topkIds(), rows.ids(), 0xff, stream);
      part(inputs.routing().topkWeights(), rows.weights(), 0, stream);
      Tensor slots = rows.slots();
      Tensor mapping = inputs.tokenLoraMapping();
      if (slots != null && mapping != null) {
        part(mapping, slots, 0xff, stream);
      }
    }

    private void part(Tensor from, Tensor to, int fill, DeviceStream stream) {
      long tokens = from.size(0);
      device.copy(from, to.narrow(0, 0, tokens), stream);
      device.fill(to.narrow(0, tokens, to.size(0) - tokens), fill, stream);
    }

    @Override
    public void own(Tensor ids, Tensor owner, long rows, int me, DeviceStream stream) {
      long pairs = ids.elementCount();
      if (pairs == 0) {
        return;
      }
      long blocks = Math.ceilDiv(pairs, (long) THREADS);
      own.begin()
          .pointer(ids)
          .pointer(owner)
          .i64(pairs)
          .i64(rows * ids.size(1))
          .i32(Math.toIntExact(owner.size(1)))
          .i32(me)
          .launch(stream, (int) Math.min(MOST_BLOCKS, blocks));
    }

    @Override
    public void cast(Tensor in, Tensor out, DeviceStream stream) {
      elementwise.cast(in, out, stream);
    }
  }
}
