package io.moe4j.backend.triton.launch;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.backend.triton.tiles.TilePlan;
import io.moe4j.backend.triton.tiles.TileTable;
import io.moe4j.cuda.Kernel;
import io.moe4j.cuda.KernelLaunch;
import io.moe4j.cuda.TensorMaps;
import io.moe4j.cuda.experts.ForwardLayout;
import io.moe4j.cuda.experts.WeightedSum;
import io.moe4j.cuda.ops.ComposedLora;
import io.moe4j.cuda.ops.ElementwiseKernels;
import io.moe4j.cuda.ops.ExpertKernels;
import io.moe4j.cuda.ops.PaddedSizes;
import io.moe4j.cuda.ops.PairBatch;
import io.moe4j.cuda.ops.ShrinkKernel;
import io.moe4j.cuda.ops.TileLists;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;

/**
 * Everything after the sort: the GEMMs of {@code gemm.py} and {@code down.cu} between the shared
 * shrinks and combine.
 */
final class GemmLaunches {
  private static final int MAX_MAPS = 256;
  private static final int DOWN_ROWS = 8;

  private record MapKey(long address, long rows, long columns, String box) {}

  private final TritonKernels kernels;
  private final MoeConfig config;
  private final PaddedSizes sizes;
  private final int experts;
  private final ExpertMatrices matrices;
  private final ShrinkKernel shrink;
  private final WeightedSum sum;
  private final String type;
  private final Map<MapKey, MemorySegment> maps = new ConcurrentHashMap<>();

  GemmLaunches(
      TritonKernels kernels,
      ExpertKernels shared,
      MoeConfig config,
      PaddedSizes sizes,
      int experts,
      ExpertMatrices matrices) {
    this.kernels = kernels;
    this.config = config;
    this.sizes = sizes;
    this.experts = experts;
    this.matrices = matrices;
    this.type = TritonKernels.type(config.weightDtype());
    this.shrink = new ShrinkKernel(shared, config.weightDtype(), gated());
    this.sum = new WeightedSum(shared, config);
  }

  void run(TritonForward f) {
    int hidden = sizes.hidden();
    int inter = sizes.intermediate();
    ForwardLayout at = f.at();
    long x = f.plan().permute() ? f.address(at.own()) : f.of().hidden();
    if (f.lora()) {
      shrink(f, true, x, hidden);
    }
    gemm(f, true, x, f.address(at.middle()), inter, hidden);
    if (f.lora()) {
      shrink(f, false, f.address(at.middle()), inter);
    }
    if (f.plan().sums()) {
      down(f, hidden, inter);
    } else {
      gemm(f, false, f.address(at.middle()), f.address(at.y()), hidden, inter);
      combine(f);
    }
  }

  /**
   * The products as they are, for deltas of others.
   *
   * @param f of {@link TileTable#composed}
   */
  ComposedLora.Products products(TritonForward f) {
    return new ComposedLora.Products() {
      @Override
      public void product(boolean first, Tensor x, Tensor y) {
        TilePlan plan = f.plan();
        gemm(
            f,
            first,
            "w2",
            first ? plan.w13() : plan.w2(),
            first ? plan.tileColumns13() : plan.tileColumns2(),
            x.deviceAddress(),
            y.deviceAddress(),
            Math.toIntExact(y.size(1)),
            Math.toIntExact(x.size(1)));
      }

      @Override
      public void combine() {
        GemmLaunches.this.combine(f);
      }
    };
  }

  private boolean gated() {
    return config.activation().isGated();
  }

  private void shrink(TritonForward f, boolean first, long x, int contraction) {
    shrink.run(
        f.batch(),
        f.plan().shrinks(),
        first,
        x,
        contraction,
        f.of().base(),
        f.at().lists(),
        f.at().shrinks());
  }

  private void gemm(TritonForward f, boolean first, long x, long y, int columns, int contraction) {
    TilePlan plan = f.plan();
    gemm(
        f,
        first,
        !first ? "w2" : gated() ? "w13" : "w1",
        first ? plan.w13() : plan.w2(),
        first ? plan.tileColumns13() : plan.tileColumns2(),
        x,
        y,
        columns,
        contraction);
  }

  /**
   * @param first whose weights
   * @param stage what the kernel does with the product: that of w2 leaves it as it is
   */
  private void gemm(
      TritonForward f,
      boolean first,
      String stage,
      String tile,
      int tileColumns,
      long x,
      long y,
      int columns,
      int contraction) {
    TilePlan plan = f.plan();
    ForwardLayout at = f.at();
    Activation a = config.activation();
    boolean plain = a.kind() == Activation.Kind.SILU && a.limit() == Float.POSITIVE_INFINITY;
    boolean raw = stage.equals("w2");
    boolean gather = !raw && !plan.permute();
    Tensor w = first ? matrices.w13() : matrices.w2();
    Tensor scales = first ? matrices.scales13() : matrices.scales2();
    Tensor bias = first ? matrices.bias13() : matrices.bias2();
    Kernel kernel =
        kernels.get(
            "gemm",
            "type",
            scales == null ? type : "mxfp4",
            "stage",
            stage,
            "tile",
            tile,
            "act",
            raw ? "none" : gated() && plain && plan.tuned() && scales == null ? "silu" : "any",
            "lora",
            f.lora() ? "1" : "0",
            "naive",
            plan.naive() ? "1" : "0",
            "gather",
            gather ? "1" : "0");
    KernelLaunch l = kernel.begin().pointer(0).pointer(x);
    long rows = w.size(0) * w.size(1);
    map(l, kernel, "xd", x, f.pairs(), contraction);
    map(l, kernel, "xh", x, f.pairs(), contraction);
    l.pointer(w);
    if (scales != null) {
      l.pointer(scales);
    }
    map(l, kernel, "wd", w.deviceAddress(), rows, contraction);
    PairBatch b = f.batch();
    TileLists lists = at.lists();
    l.pointer(bias)
        .pointer(b.weights())
        .pointer(y)
        .pointer(b.table())
        .pointer(b.ids())
        .pointer(b.expertMap())
        .pointer(b.mapping())
        .pointer(f.address(lists.pairs()))
        .pointer(f.address(lists.tiles()))
        .pointer(f.address(lists.nums()))
        .pointer(f.address(lists.segOf()))
        .pointer(f.address(first ? lists.pages13First() : lists.pages2First()))
        .pointer(f.address(first ? lists.pages13Second() : lists.pages2First()))
        .pointer(f.address(first ? lists.pages13Words() : lists.pages2Words()))
        .pointer(f.address(first ? at.shrinks().first() : at.shrinks().second()))
        .pointer(f.address(at.shrinks().partial()))
        .i32(b.hasMap())
        .i32(bias == null ? 0 : 1)
        .i32(config.routerWeightOnInput() && !f.of().batched() ? 1 : 0)
        .i32(ElementwiseKernels.code(a.kind()))
        .f32(a.alpha())
        .f32(a.beta())
        .f32(a.limit())
        .i32(b.pairs())
        .i32(b.topK())
        .i32(columns)
        .i32(contraction)
        .i32(b.globalExperts())
        .i32(experts)
        .i32(b.slots())
        .i32(shrink.width(b, first))
        .i32(b.rank())
        .i32(b.lora() ? shrink.splits(b, plan.shrinks(), first) : 1)
        .i32(plan.groupTiles())
        .i32(plan.sums() ? 1 : 0);
    int programs = Math.multiplyExact(f.tiles(), Math.ceilDiv(columns, tileColumns));
    if (kernels.limitsOccupancy(kernel.spec())) {
      l.sharedBytes(
          OccupancyLimit.sharedBytes(
              programs, kernels.multiprocessors(), kernel.spec().sharedBytes()));
    }
    l.launch(f.stream(), programs);
  }

  /** Passes a tensor map with its sizes, if the kernel takes one of that name. */
  private void map(
      KernelLaunch l, Kernel kernel, String name, long address, long rows, long columns) {
    String box = kernel.spec().constants().get(name);
    if (box == null) {
      return;
    }
    MapKey key = new MapKey(address, rows, columns, box);
    MemorySegment map = maps.get(key);
    if (map == null) {
      if (maps.size() >= MAX_MAPS) {
        maps.clear();
      }
      map = encode(key);
      maps.put(key, map);
    }
    l.tensorMap(map).i32((int) rows).i32((int) columns).i64(columns).i64(1);
  }

  /** A box is written like {@code 128x64-swizzle3}. */
  private MemorySegment encode(MapKey key) {
    DType dtype = config.weightDtype();
    int x = key.box().indexOf('x');
    int dash = key.box().indexOf("-swizzle");
    TensorMaps.Swizzle swizzle =
        switch (key.box().charAt(key.box().length() - 1)) {
          case '0' -> TensorMaps.Swizzle.NONE;
          case '1' -> TensorMaps.Swizzle.BYTES_32;
          case '2' -> TensorMaps.Swizzle.BYTES_64;
          default -> TensorMaps.Swizzle.BYTES_128;
        };
    DeviceMemory memory =
        new DeviceMemory(
            ((DeviceMemory) matrices.w2().memory()).device(),
            key.address(),
            dtype.byteSize(key.rows() * key.columns()));
    return TensorMaps.matrix(
        Tensor.of(dtype, memory, key.rows(), key.columns()),
        Integer.parseInt(key.box(), 0, x, 10),
        Integer.parseInt(key.box(), x + 1, dash, 10),
        swizzle,
        Arena.ofAuto());
  }

  /**
   * w2 of one token and the weighted sum. The w13 and the shrink before it let it start early:
   * until it waits it reads weights, ids and factors, which are older than both.
   */
  private void down(TritonForward f, int columns, int contraction) {
    ForwardLayout at = f.at();
    PairBatch b = f.batch();
    Tensor bias = matrices.bias2();
    kernels
        .get(
            "down",
            "out",
            f.of().output().dtype() == DType.F32 ? "f32" : "same",
            "lora",
            f.lora() ? "1" : "0")
        .begin()
        .pointer(f.address(at.middle()))
        .pointer(matrices.w2())
        .pointer(bias)
        .pointer(b.weights())
        .pointer(f.of().output())
        .pointer(b.table())
        .pointer(b.ids())
        .pointer(b.expertMap())
        .pointer(b.mapping())
        .pointer(f.address(at.shrinks().partial()))
        .i32(config.routerWeightOnInput() ? 1 : 0)
        .i32(b.topK())
        .i32(columns)
        .i32(contraction)
        .i32(b.globalExperts())
        .i32(experts)
        .i32(b.slots())
        .i32(b.rank())
        .i32(b.lora() ? shrink.splits(b, f.plan().shrinks(), false) : 1)
        .launch(f.stream(), columns / DOWN_ROWS);
  }

  /** The weighted sum over k. */
  private void combine(TritonForward f) {
    sum.run(f.of(), f.plan().naive());
  }
}
