package io.moe4j.cuda.ops;

import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.Kernel;
import io.moe4j.cuda.KernelLaunch;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/**
 * {@code y = x . w^T + bias} for the dense maps of a block (router, latent projections, shared
 * expert): f32 accumulation, f32 result; see {@code gemm.cu}. Safe for several threads.
 */
public final class DenseGemm {
  /** How a product is computed; a pure function of its sizes, see {@link #plan}. */
  enum Method {
    /** A warp per column. */
    GEMV,
    /** Tiles on the f32 units. */
    TILED,
    /** Tensor cores, 64 x 64 tiles. */
    TENSOR_64,
    /** Tensor cores, 128 x 128 tiles. */
    TENSOR_128
  }

  /**
   * A launch.
   *
   * @param method which kernel
   * @param gridX blocks over the columns
   * @param gridY blocks over the tokens
   */
  record Plan(Method method, int gridX, int gridY) {}

  /** Up to this many tokens, reading w once per 8 of them costs less than a tile half empty. */
  static final int GEMV_TOKENS = 16;

  private static final int GEMV_COLUMNS = 4;
  private static final int GEMV_TOKENS_PER_BLOCK = 8;
  private static final int SMALL_TILE = 64;
  private static final int LARGE_TILE = 128;
  private static final int VECTOR = 8;
  private static final int ALIGNMENT = 16;

  private final Kernel[][] gemv;
  private final Kernel[][] tiled;
  private final Kernel[] tensor64;
  private final Kernel[] tensor128;
  private final int multiprocessors;

  /**
   * Loads the kernels.
   *
   * @param device where to run
   */
  public DenseGemm(CudaDevice device) {
    gemv = SharedKernels.table(device, "gemv", "x", "w");
    tiled = SharedKernels.table(device, "gemm", "x", "w");
    tensor64 = new Kernel[3];
    tensor128 = new Kernel[3];
    for (DType t : new DType[] {DType.BF16, DType.F16}) {
      int i = SharedKernels.index("type", t);
      String name = SharedKernels.name(t);
      tensor64[i] = SharedKernels.load(device, "mma", Map.of("tile", "64", "x", name));
      tensor128[i] = SharedKernels.load(device, "mma", Map.of("tile", "128", "x", name));
    }
    multiprocessors =
        Integer.parseInt(device.info().properties().getOrDefault("multiprocessors", "1"));
  }

  /**
   * Chooses.
   *
   * @param tokens {@code T}, at least 1
   * @param columns {@code N}, at least 1
   * @param depth {@code K}
   * @param tensorCores whether types and alignment let the tensor cores do it
   * @param multiprocessors of the card
   * @return the launch
   */
  static Plan plan(int tokens, int columns, int depth, boolean tensorCores, int multiprocessors) {
    if (tokens <= GEMV_TOKENS) {
      return new Plan(
          Method.GEMV,
          Math.ceilDiv(columns, GEMV_COLUMNS),
          Math.ceilDiv(tokens, GEMV_TOKENS_PER_BLOCK));
    }
    int largeTiles = Math.ceilDiv(tokens, LARGE_TILE) * Math.ceilDiv(columns, LARGE_TILE);
    boolean large = tensorCores && largeTiles >= multiprocessors;
    int tile = large ? LARGE_TILE : SMALL_TILE;
    return new Plan(
        large ? Method.TENSOR_128 : tensorCores ? Method.TENSOR_64 : Method.TILED,
        Math.ceilDiv(columns, tile),
        Math.ceilDiv(tokens, tile));
  }

  /**
   * Multiplies.
   *
   * @param x {@code [T, K]}, F32, BF16 or F16, contiguous
   * @param w {@code [N, K]}, F32, BF16 or F16, contiguous
   * @param bias F32 {@code [N]}, or null
   * @param y F32 {@code [T, N]}, contiguous, overwritten
   * @param stream where to run
   */
  public void run(Tensor x, Tensor w, @Nullable Tensor bias, Tensor y, DeviceStream stream) {
    if (x.dims() != 2
        || w.dims() != 2
        || y.dims() != 2
        || x.size(1) != w.size(1)
        || y.size(0) != x.size(0)
        || y.size(1) != w.size(0)
        || y.dtype() != DType.F32
        || !x.isContiguous()
        || !w.isContiguous()
        || !y.isContiguous()) {
      throw new IllegalArgumentException(
          "x is " + x + ", w " + w + ", y " + y + "; need contiguous [T, K], [N, K] and F32[T, N]");
    }
    int xi = SharedKernels.index("x", x.dtype());
    int wi = SharedKernels.index("w", w.dtype());
    int tokens = SharedKernels.size("T", x.size(0));
    int columns = SharedKernels.size("N", w.size(0));
    int depth = SharedKernels.size("K", x.size(1));
    if (tokens == 0 || columns == 0) {
      return;
    }
    boolean aligned =
        depth % VECTOR == 0
            && x.deviceAddress() % ALIGNMENT == 0
            && w.deviceAddress() % ALIGNMENT == 0;
    boolean tensorCores = aligned && xi == wi && x.dtype() != DType.F32;
    Plan plan = plan(tokens, columns, depth, tensorCores, multiprocessors);
    Kernel kernel =
        switch (plan.method()) {
          case GEMV -> gemv[xi][wi];
          case TILED -> tiled[xi][wi];
          case TENSOR_64 -> tensor64[xi];
          case TENSOR_128 -> tensor128[xi];
        };
    KernelLaunch launch =
        kernel
            .begin()
            .pointer(x)
            .pointer(w)
            .pointer(bias)
            .pointer(y)
            .i32(tokens)
            .i32(columns)
            .i32(depth);
    if (plan.method() == Method.GEMV) {
      // 8 f32 are two 16-byte loads, which only need 16-byte boundaries too.
      launch.i32(aligned ? 1 : 0);
    }
    launch.launch(stream, plan.gridX(), plan.gridY(), 1);
  }
}
