package io.moe4j.backend.triton;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.backend.triton.TilePlan.Shrink;
import io.moe4j.cuda.Kernel;
import io.moe4j.cuda.KernelLaunch;
import io.moe4j.cuda.TensorMaps;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;

/**
 * Launches shrinks, GEMMs and the combine of {@code shrink.py} and {@code gemm.py}, and {@code
 * down.cu}.
 */
final class GemmLaunches {
  private static final int MAX_MAPS = 256;
  private static final int WIDE_COMBINE = 1024;
  private static final int NARROW_COMBINE = 256;
  private static final int WIDE_COMBINE_TOKENS = 64;
  private static final int DOWN_ROWS = 8;

  private record MapKey(long address, long rows, long columns, String box) {}

  private final TritonKernels kernels;
  private final MoeConfig config;
  private final Widths widths;
  private final int experts;
  private final ExpertMatrices matrices;
  private final String type;
  private final Map<MapKey, MemorySegment> maps = new ConcurrentHashMap<>();

  GemmLaunches(
      TritonKernels kernels,
      MoeConfig config,
      Widths widths,
      int experts,
      ExpertMatrices matrices) {
    this.kernels = kernels;
    this.config = config;
    this.widths = widths;
    this.experts = experts;
    this.matrices = matrices;
    this.type = TritonKernels.type(config.weightDtype());
  }

  void run(Forward f) {
    int hidden = widths.hidden();
    int inter = widths.intermediate();
    ForwardLayout at = f.at();
    long x = f.plan().permute() ? f.address(at.sorted) : f.hidden();
    if (f.lora()) {
      shrink(f, true, x, hidden);
    }
    gemm(f, true, x, f.address(at.middle), inter, hidden);
    if (f.lora()) {
      shrink(f, false, f.address(at.middle), inter);
    }
    if (f.plan().sums()) {
      down(f, hidden, inter);
    } else {
      gemm(f, false, f.address(at.middle), f.address(at.y), hidden, inter);
      combine(f);
    }
  }

  /**
   * A product as it is, without LoRA or activation, in the order of the sort.
   *
   * @param f of {@link TileTable#composed}
   * @param first w13 or w2
   * @param x {@code [P, contraction]}
   * @param y {@code [P, columns]}, overwritten
   */
  void product(Forward f, boolean first, Tensor x, Tensor y) {
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

  private boolean gated() {
    return config.activation().isGated();
  }

  /** Splits that fit the room for partial sums. */
  private int splits(Forward f, Shrink s, int width, boolean first) {
    int splits = s.splits();
    long bytes =
        f.plan().naive()
            ? Float.BYTES * (long) f.pairs() * width
            : Float.BYTES
                * (long) f.shrinkTiles(experts)
                * s.chunks()
                * f.plan().shrinkRows()
                * s.ranks();
    while (splits > 1 && bytes * splits > ForwardLayout.PARTIAL_BYTES) {
      splits /= 2;
    }
    if (f.plan().naive() && bytes > ForwardLayout.PARTIAL_BYTES) {
      throw new IllegalArgumentException(
          f.pairs()
              + " pairs of rank "
              + f.rank()
              + " need "
              + bytes
              + " bytes for partial sums"
              + (first ? " of w13" : " of w2"));
    }
    return splits;
  }

  private int width(Forward f, boolean first) {
    return first && gated() ? 2 * f.rank() : f.rank();
  }

  private void shrink(Forward f, boolean first, long x, int contraction) {
    TilePlan plan = f.plan();
    ForwardLayout at = f.at();
    Shrink s = first ? plan.shrink13() : plan.shrink2();
    int width = width(f, first);
    int splits = splits(f, s, width, first);
    kernels
        .get(
            "shrink",
            "type",
            type,
            "of",
            !first ? "down" : gated() ? "pair" : "single",
            "step",
            Integer.toString(s.step()),
            "any",
            s.any() ? "1" : "0",
            "rows",
            Integer.toString(plan.shrinkRows()),
            "ranks",
            Integer.toString(s.ranks()),
            "gather",
            first && !plan.permute() ? "1" : "0",
            "naive",
            plan.naive() ? "1" : "0")
        .begin()
        .pointer(0)
        .pointer(x)
        .pointer(f.address(first ? at.s1 : at.s2))
        .pointer(f.address(at.partial))
        .pointer(f.address(at.arrived))
        .pointer(f.table())
        .pointer(f.ids())
        .pointer(f.expertMap())
        .pointer(f.mapping())
        .pointer(f.address(at.pairs))
        .pointer(f.address(at.shrinkTiles))
        .pointer(f.address(at.nums))
        .i32(f.hasMap())
        .i32(f.topK())
        .i32(contraction)
        .i32(f.globalExperts())
        .i32(experts)
        .i32(f.slots())
        .i32(width)
        .i32(f.rank())
        .i32(s.chunks())
        .i32(splits)
        .i32(plan.sums() ? 1 : 0)
        .launch(
            f.stream(),
            Math.multiplyExact(Math.multiplyExact(f.shrinkTiles(experts), s.chunks()), splits));
  }

  private void gemm(Forward f, boolean first, long x, long y, int columns, int contraction) {
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
      Forward f,
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
    Shrink s = first ? plan.shrink13() : plan.shrink2();
    int width = width(f, first);
    l.pointer(bias)
        .pointer(f.weights())
        .pointer(y)
        .pointer(f.table())
        .pointer(f.ids())
        .pointer(f.expertMap())
        .pointer(f.mapping())
        .pointer(f.address(at.pairs))
        .pointer(f.address(at.tiles))
        .pointer(f.address(at.nums))
        .pointer(f.address(at.segOf))
        .pointer(f.address(first ? at.pages13a : at.pages2a))
        .pointer(f.address(first ? at.pages13b : at.pages2a))
        .pointer(f.address(first ? at.pages13m : at.pages2m))
        .pointer(f.address(first ? at.s1 : at.s2))
        .pointer(f.address(at.partial))
        .i32(f.hasMap())
        .i32(bias == null ? 0 : 1)
        .i32(config.routerWeightOnInput() && !f.batched() ? 1 : 0)
        .i32(code(a.kind()))
        .f32(a.alpha())
        .f32(a.beta())
        .f32(a.limit())
        .i32(f.pairs())
        .i32(f.topK())
        .i32(columns)
        .i32(contraction)
        .i32(f.globalExperts())
        .i32(experts)
        .i32(f.slots())
        .i32(width)
        .i32(f.rank())
        .i32(f.lora() ? splits(f, s, width, first) : 1)
        .i32(plan.groupTiles())
        .i32(plan.sums() ? 1 : 0);
    int programs = Math.multiplyExact(f.tiles(experts), Math.ceilDiv(columns, tileColumns));
    if (kernels.spreads(kernel.spec())) {
      l.sharedBytes(
          EvenSpread.sharedBytes(programs, kernels.multiprocessors(), kernel.spec().sharedBytes()));
    }
    l.launch(f.stream(), programs);
  }

  /** The kernels' number of a function, as in {@code activation.py}. */
  static int code(Activation.Kind kind) {
    return switch (kind) {
      case SILU -> 0;
      case GELU -> 1;
      case GELU_TANH -> 2;
      case SWIGLUOAI -> 3;
      case SWIGLU_STEP -> 4;
      case SILU_NO_MUL -> 5;
      case GELU_NO_MUL -> 6;
      case GELU_TANH_NO_MUL -> 7;
      case RELU2_NO_MUL -> 8;
    };
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
  private void down(Forward f, int columns, int contraction) {
    ForwardLayout at = f.at();
    Tensor bias = matrices.bias2();
    kernels
        .get(
            "down",
            "out",
            f.output().dtype() == DType.F32 ? "f32" : "same",
            "lora",
            f.lora() ? "1" : "0")
        .begin()
        .pointer(f.address(at.middle))
        .pointer(matrices.w2())
        .pointer(bias)
        .pointer(f.weights())
        .pointer(f.output())
        .pointer(f.table())
        .pointer(f.ids())
        .pointer(f.expertMap())
        .pointer(f.mapping())
        .pointer(f.address(at.partial))
        .i32(config.routerWeightOnInput() ? 1 : 0)
        .i32(f.topK())
        .i32(columns)
        .i32(contraction)
        .i32(f.globalExperts())
        .i32(experts)
        .i32(f.slots())
        .i32(f.rank())
        .i32(f.lora() ? splits(f, f.plan().shrink2(), f.rank(), false) : 1)
        .launch(f.stream(), columns / DOWN_ROWS);
  }

  /** The weighted sum over k. */
  void combine(Forward f) {
    int hidden = widths.hidden();
    boolean naive = f.plan().naive();
    boolean wide = !naive && f.tokens() >= WIDE_COMBINE_TOKENS;
    int block = wide ? WIDE_COMBINE : NARROW_COMBINE;
    kernels
        .get(
            "combine",
            "type",
            type,
            "out",
            TritonKernels.type(f.output().dtype()),
            "k",
            kernels.unrolled(f.topK()) ? Integer.toString(f.topK()) : "0",
            "naive",
            naive ? "1" : "0",
            "width",
            Integer.toString(block))
        .begin()
        .pointer(f.address(f.at().y))
        .pointer(f.address(f.at().posOf))
        .pointer(f.ids())
        .pointer(f.expertMap())
        .pointer(f.weights())
        .pointer(f.output())
        .i32(f.hasMap())
        .i32(config.routerWeightOnInput() || f.batched() ? 1 : 0)
        .i32(f.batched() ? 1 : 0)
        .i32(hidden)
        .i32(f.topK())
        .i32(f.globalExperts())
        .i32(experts)
        .launch(f.stream(), f.tokens(), Math.ceilDiv(hidden, block), 1);
  }
}
