package io.moe4j.backend.flashinfer;

import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaDeviceProvider;
import io.moe4j.cuda.Kernel;
import io.moe4j.cuda.KernelLaunch;
import io.moe4j.cuda.KernelLibrary;
import io.moe4j.cuda.ops.ElementwiseKernels;
import io.moe4j.cuda.ops.TopkKernel;
import java.util.EnumMap;
import java.util.Map;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/** What stands between a layer's tensors and FlashInfer's, as kernels of ours. */
interface CardKernels {
  /** Scales that {@link #routeAndQuantize} takes. */
  float LEAST_SCALE = 0x1p-60f;

  float MOST_SCALE = 0x1p60f;

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
   * @param early whether it may begin while the kernel in front of it still runs, which must have
   *     waited first of all for what was in front of that and have nothing to do with these tensors
   * @param stream where to run
   */
  void quantize(Tensor in, Tensor out, Tensor scale, boolean early, DeviceStream stream);

  /**
   * MXFP8 (OCP Microscaling Formats v1.0): of each 32 elements the largest magnitude over 448,
   * rounded up to a power of two, is the scale; elements over it become e4m3, to nearest even.
   *
   * @param in F32, BF16 or F16, contiguous {@code [T, H]}, H a multiple of 32
   * @param out F8_E4M3 {@code [T, H]}, contiguous
   * @param scales E8M0 bytes {@code [T, H / 32]}, contiguous
   * @param stream where to run
   */
  void quantizeMx(Tensor in, Tensor out, Tensor scales, DeviceStream stream);

  /**
   * Rows of BF16 from one form into another.
   *
   * @param in {@code [R, blocks * w]}, null = zeros
   * @param map int32, the input's row for each of the output's, -1 = zeros; null = the same row
   * @param out {@code [P, blocks * v]}, overwritten: of each block the first columns, zeros where
   *     the input has fewer
   * @param blocks of a row
   * @param swapped whether blocks come in the opposite order
   */
  record Rows(@Nullable Tensor in, @Nullable Tensor map, Tensor out, int blocks, boolean swapped) {
    /** {@return a copy into another width} */
    static Rows resized(Tensor in, Tensor out) {
      return new Rows(in, null, out, 1, false);
    }

    /** {@return zeros} */
    static Rows zeros(Tensor out) {
      return new Rows(null, null, out, 1, false);
    }

    /** {@return rows from elsewhere} */
    static Rows fetched(Tensor in, Tensor map, Tensor out) {
      return new Rows(in, map, out, 1, false);
    }
  }

  /**
   * Copies rows.
   *
   * @param rows what where
   * @param early as for {@link #quantize}
   * @param stream where to run
   */
  void rows(Rows rows, boolean early, DeviceStream stream);

  /**
   * Copies rows once the kernel in front is done.
   *
   * @param rows what where
   * @param stream where to run
   */
  default void rows(Rows rows, DeviceStream stream) {
    rows(rows, false, stream);
  }

  /**
   * To e4m3, with a scale for 128 elements of a row: the largest magnitude over 448.
   *
   * @param in F32, BF16 or F16 {@code [T, H]}, {@code H} a multiple of 128
   * @param out F8_E4M3, the same shape, overwritten
   * @param scales F32 {@code [H / 128, T]}, overwritten; 1 for zeros alone
   * @param stream where to run
   */
  void quantizeBlocks(Tensor in, Tensor out, Tensor scales, DeviceStream stream);

  /**
   * To NVFP4: e2m1 with an E4M3 scale for 16 elements, the largest magnitude over 6 and the given
   * scale.
   *
   * @param in F32, BF16 or F16 {@code [T, H]}, {@code H} a multiple of 16
   * @param out U8 {@code [T, H / 2]}, the first element in the lower half, overwritten
   * @param scales F8_E4M3 {@code [T, H / 16]}, overwritten
   * @param scale one F32 number above 0
   * @param stream where to run
   */
  void quantizeNv(Tensor in, Tensor out, Tensor scales, Tensor scale, DeviceStream stream);

  /**
   * Ids and weights in one number each: the id above the weight's bits in BF16.
   *
   * @param ids int32 {@code [T, K]}
   * @param weights F32 {@code [T, K]}
   * @param out int32 {@code [T, K]}, overwritten
   * @param stream where to run
   */
  void packRouting(Tensor ids, Tensor weights, Tensor out, DeviceStream stream);

  /** From router logits to ids and weights. */
  interface Router {
    /**
     * Routes.
     *
     * @param logits F32 {@code [T, E]}
     * @param correctionBias F32 {@code [E]}, or null
     * @param ids int32 {@code [T, K]}, overwritten
     * @param weights F32 {@code [T, K]}, overwritten
     * @param stream where to run
     */
    void route(
        Tensor logits,
        @Nullable Tensor correctionBias,
        Tensor ids,
        Tensor weights,
        DeviceStream stream);
  }

  /** {@return the router of a layer} */
  Router router(RoutingConfig routing, int numExperts, int topK);

  /**
   * {@return whether {@link #routeAndQuantize} and {@link #routeAndResize} route a layer}
   *
   * @param routing without a correction bias
   * @param numExperts {@code E}
   * @param topK {@code K}
   */
  boolean routesInOneLaunch(RoutingConfig routing, int numExperts, int topK);

  /**
   * {@link Router#route} and {@link #quantize} in one launch.
   *
   * @param routing one of {@link #routesInOneLaunch}
   * @param logits F32 {@code [T, E]}, contiguous
   * @param to ids and weights, overwritten
   * @param in BF16 {@code [T, H]}, contiguous, its address a multiple of 16, H of 8
   * @param out F8_E4M3 {@code [T, H]}, its address a multiple of 8
   * @param scale one F32 number on the device, {@link #LEAST_SCALE} to {@link #MOST_SCALE}
   * @param stream where to run
   */
  void routeAndQuantize(
      RoutingConfig routing,
      Tensor logits,
      ExpertRouting to,
      Tensor in,
      Tensor out,
      Tensor scale,
      DeviceStream stream);

  /**
   * {@link Router#route} and {@link #rows} in one launch.
   *
   * @param routing one of {@link #routesInOneLaunch}
   * @param logits F32 {@code [T, E]}, contiguous
   * @param to ids and weights, overwritten
   * @param in BF16 {@code [T, H]}, contiguous, its address a multiple of 16, H of 8
   * @param out BF16 {@code [T, V]}, V at least H, likewise; T * V / 8 below 2^31. Overwritten,
   *     zeros behind H
   * @param stream where to run
   */
  void routeAndResize(
      RoutingConfig routing,
      Tensor logits,
      ExpertRouting to,
      Tensor in,
      Tensor out,
      DeviceStream stream);

  /**
   * The weighted sum over k, in f32.
   *
   * @param y BF16 {@code [T * K, H]}, in the order of the pairs
   * @param routing ids, weights, map; pairs without a local expert add nothing
   * @param experts local ones
   * @param out {@code [T, H]}, overwritten
   * @param stream where to run
   */
  void combine(Tensor y, ExpertRouting routing, int experts, Tensor out, DeviceStream stream);

  /** {@return whether work enqueued on a stream now is recorded into a graph instead of run} */
  boolean isRecording(DeviceStream stream);

  /** {@return the kernels of a CUDA device, loaded} */
  static CardKernels of(Device device) {
    return new OnCuda(CudaDevice.of(device));
  }

  /** The real ones. */
  final class OnCuda implements CardKernels {
    private static final int THREADS = 256;
    private static final int E4M3_PER_THREAD = 8;
    private static final int MXFP8_PER_THREAD = 4;
    private static final int BLOCK_PER_THREAD = 4;
    private static final int NVFP4_PER_THREAD = 4;
    private static final int MOST_BLOCKS = 2048;
    private static final int PACK = 8;
    private static final int PACK_BYTES = 16;

    /** Of {@code route.cuh}. */
    private static final int TOKENS_PER_BLOCK = 4;

    private static final int SCORES_PER_LANE = 4;
    private static final int E4M3_PER_BLOCK = 4096;
    private static final int PACKS_PER_BLOCK = 128;

    private final ElementwiseKernels elementwise;
    private final Map<DType, Kernel> quantize = new EnumMap<>(DType.class);
    private final Map<DType, Kernel> quantizeMx = new EnumMap<>(DType.class);
    private final Map<DType, Kernel> quantizeBlocks = new EnumMap<>(DType.class);
    private final Map<DType, Kernel> quantizeNv = new EnumMap<>(DType.class);
    private final CudaDevice device;
    private final Kernel rowsByOne;
    private final Kernel rowsByEight;
    private final Kernel packRouting;
    private final @Nullable Kernel routeQuantize;
    private final @Nullable Kernel routeRows;

    private OnCuda(CudaDevice device) {
      this.device = device;
      elementwise = new ElementwiseKernels(device);
      KernelLibrary library = KernelLibrary.of(CardKernels.class, "backend-flashinfer-cuda");
      for (Map.Entry<DType, String> type :
          Map.of(DType.F32, "f32", DType.BF16, "bf16", DType.F16, "f16").entrySet()) {
        quantize.put(type.getKey(), quantize(device, library, "quantize", type.getValue()));
        quantizeMx.put(type.getKey(), quantize(device, library, "quantize_mx", type.getValue()));
        quantizeBlocks.put(
            type.getKey(), quantize(device, library, "quantize_blocks", type.getValue()));
        quantizeNv.put(type.getKey(), quantize(device, library, "quantize_nv", type.getValue()));
      }
      rowsByOne = rows(device, library, 1);
      rowsByEight = rows(device, library, PACK);
      packRouting = kernel(device, library, "pack_routing");
      boolean routes = CudaDeviceProvider.capability(device.info()).atLeast(9, 0);
      routeQuantize = routes ? kernel(device, library, "route_quantize") : null;
      routeRows = routes ? kernel(device, library, "route_rows") : null;
    }

    private static Kernel kernel(CudaDevice device, KernelLibrary library, String name) {
      return device.kernel(library, library.select(device.info(), name, Map.of()));
    }

    private static Kernel quantize(
        CudaDevice device, KernelLibrary library, String name, String type) {
      return device.kernel(library, library.select(device.info(), name, Map.of("in", type)));
    }

    private static Kernel rows(CudaDevice device, KernelLibrary library, int elements) {
      return device.kernel(
          library,
          library.select(device.info(), "rows", Map.of("elements", Integer.toString(elements))));
    }

    @Override
    public void cast(Tensor in, Tensor out, DeviceStream stream) {
      elementwise.cast(in, out, stream);
    }

    @Override
    public void quantize(Tensor in, Tensor out, Tensor scale, boolean early, DeviceStream stream) {
      long n = in.elementCount();
      of(quantize, in)
          .begin()
          .pointer(in)
          .pointer(out)
          .pointer(scale)
          .i64(n)
          .i32(early ? 1 : 0)
          .launch(stream, blocks(n, E4M3_PER_THREAD));
    }

    private static Kernel of(Map<DType, Kernel> kernels, Tensor in) {
      Kernel kernel = kernels.get(in.dtype());
      if (kernel == null) {
        throw new IllegalArgumentException("input is " + in + ", must be F32, BF16 or F16");
      }
      return kernel;
    }

    private static int blocks(long elements, int perThread) {
      return (int) Math.min(MOST_BLOCKS, Math.ceilDiv(elements, (long) THREADS * perThread));
    }

    @Override
    public void quantizeMx(Tensor in, Tensor out, Tensor scales, DeviceStream stream) {
      long n = in.elementCount();
      of(quantizeMx, in)
          .begin()
          .pointer(in)
          .pointer(out)
          .pointer(scales)
          .i64(n)
          .launch(stream, blocks(n, MXFP8_PER_THREAD));
    }

    @Override
    public void quantizeBlocks(Tensor in, Tensor out, Tensor scales, DeviceStream stream) {
      long n = in.elementCount();
      of(quantizeBlocks, in)
          .begin()
          .pointer(in)
          .pointer(out)
          .pointer(scales)
          .i64(n)
          .i32(Math.toIntExact(in.size(0)))
          .i32(Math.toIntExact(in.size(1)))
          .launch(stream, blocks(n, BLOCK_PER_THREAD));
    }

    @Override
    public void quantizeNv(
        Tensor in, Tensor out, Tensor scales, Tensor scale, DeviceStream stream) {
      long n = in.elementCount();
      of(quantizeNv, in)
          .begin()
          .pointer(in)
          .pointer(out)
          .pointer(scales)
          .pointer(scale)
          .i64(n)
          .launch(stream, blocks(n, NVFP4_PER_THREAD));
    }

    @Override
    public void packRouting(Tensor ids, Tensor weights, Tensor out, DeviceStream stream) {
      long n = ids.elementCount();
      packRouting
          .begin()
          .pointer(ids)
          .pointer(weights)
          .pointer(out)
          .i64(n)
          .launch(stream, blocks(n, 1));
    }

    @Override
    public void rows(Rows r, boolean early, DeviceStream stream) {
      Tensor in = r.in();
      Tensor out = r.out();
      long outWidth = out.size(1) / r.blocks();
      long inWidth = in == null ? outWidth : in.size(1) / r.blocks();
      boolean packed =
          inWidth % PACK == 0
              && outWidth % PACK == 0
              && out.deviceAddress() % PACK_BYTES == 0
              && (in == null || in.deviceAddress() % PACK_BYTES == 0);
      int elements = packed ? PACK : 1;
      (packed ? rowsByEight : rowsByOne)
          .begin()
          .pointer(in)
          .pointer(r.map())
          .pointer(out)
          .i32(r.blocks())
          .i32(Math.toIntExact(inWidth / elements))
          .i32(Math.toIntExact(outWidth / elements))
          .i32(r.swapped() ? 1 : 0)
          .i32(early ? 1 : 0)
          .launch(stream, Math.toIntExact(out.size(0)));
    }

    @Override
    public boolean isRecording(DeviceStream stream) {
      return device.isCapturing(stream);
    }

    @Override
    public Router router(RoutingConfig routing, int numExperts, int topK) {
      return new TopkKernel(device, routing, numExperts, topK)::run;
    }

    @Override
    public boolean routesInOneLaunch(RoutingConfig routing, int numExperts, int topK) {
      return routeQuantize != null
          && TopkKernel.fitsToken(routing, numExperts, topK, SCORES_PER_LANE);
    }

    @Override
    public void routeAndQuantize(
        RoutingConfig routing,
        Tensor logits,
        ExpertRouting to,
        Tensor in,
        Tensor out,
        Tensor scale,
        DeviceStream stream) {
      long n = in.elementCount();
      int quantizing = (int) Math.min(MOST_BLOCKS, Math.ceilDiv(n, (long) E4M3_PER_BLOCK));
      routing(routeQuantize, routing, logits, to)
          .pointer(in)
          .pointer(out)
          .pointer(scale)
          .i64(n)
          .launch(stream, Math.max(quantizing, routingBlocks(logits)));
    }

    @Override
    public void routeAndResize(
        RoutingConfig routing,
        Tensor logits,
        ExpertRouting to,
        Tensor in,
        Tensor out,
        DeviceStream stream) {
      long packs = out.elementCount() / PACK;
      int copying = (int) Math.min(MOST_BLOCKS, Math.ceilDiv(packs, (long) PACKS_PER_BLOCK));
      routing(routeRows, routing, logits, to)
          .pointer(in)
          .pointer(out)
          .i32(Math.toIntExact(in.size(1)))
          .i32(Math.toIntExact(out.size(1)))
          .launch(stream, Math.max(copying, routingBlocks(logits)));
    }

    /** The first arguments of a kernel that routes. */
    private static KernelLaunch routing(
        @Nullable Kernel kernel, RoutingConfig routing, Tensor logits, ExpertRouting to) {
      return TopkKernel.addMethod(
          Objects.requireNonNull(kernel)
              .begin()
              .pointer(logits)
              .pointer(to.topkIds())
              .pointer(to.topkWeights())
              .i32(Math.toIntExact(logits.size(0)))
              .i32(Math.toIntExact(logits.size(1)))
              .i32(Math.toIntExact(to.topkIds().size(1))),
          routing);
    }

    private static int routingBlocks(Tensor logits) {
      return Math.ceilDiv(Math.toIntExact(logits.size(0)), TOKENS_PER_BLOCK);
    }

    @Override
    public void combine(
        Tensor y, ExpertRouting routing, int experts, Tensor out, DeviceStream stream) {
      elementwise.combine(y, routing, true, 0, experts, out, stream);
    }
  }
}
