package io.moe4j.backend.marlin;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.experts.ForwardLayout;
import io.moe4j.cuda.experts.GroupedForward;
import io.moe4j.cuda.experts.GroupedProducts;
import io.moe4j.cuda.experts.WeightedSum;
import io.moe4j.cuda.ops.ComposedLora;
import io.moe4j.cuda.ops.ElementwiseKernels;
import io.moe4j.cuda.ops.ExpertKernels;
import io.moe4j.cuda.ops.PaddedSizes;
import io.moe4j.cuda.ops.PairBatch;
import io.moe4j.cuda.ops.ShrinkKernel;
import io.moe4j.cuda.ops.ShrinkPlan;
import io.moe4j.cuda.ops.TileLists;

/** Everything after the sort. Safe for several threads. */
final class MarlinProducts {
  /** A product waits for the launch before it at once, before x, or before s of the shrink. */
  private static final int WAIT_AT_ONCE = 0;

  private static final int WAIT_FOR_X = 1;
  private static final int WAIT_FOR_SHRINK = 2;
  private static final int NO_ACTIVATION = -1;

  private final MarlinKernels kernels;
  private final MoeConfig config;
  private final PaddedSizes sizes;
  private final int experts;
  private final MarlinWeights weights;
  private final ShrinkKernel shrink;
  private final WeightedSum sum;
  private final String type;

  /** One forward, as it was chosen. */
  private record Forward(MarlinProducts owner, MarlinPlan plan, int tileRows, GroupedForward of)
      implements GroupedProducts.Forward {
    ForwardLayout at() {
      return of.at();
    }

    PairBatch batch() {
      return of.batch();
    }

    long address(long offset) {
      return of.address(offset);
    }

    /** Where rows lie in the order of a product's groups. */
    long ordered(boolean first) {
      long own = address(at().own());
      return first ? own : own + MarlinExperts.orderedBytes(owner.weights.first(), batch().pairs());
    }

    /** Most tiles the sort can make. */
    int tiles() {
      return plan.naive() ? batch().pairs() : batch().maxTiles(tileRows);
    }

    @Override
    public boolean naive() {
      return plan.naive();
    }

    @Override
    public ShrinkPlan shrinks() {
      return plan.shrinks();
    }

    @Override
    public void run() {
      owner.run(this);
    }

    @Override
    public ComposedLora.Products plain() {
      return owner.plain(this);
    }
  }

  MarlinProducts(
      MarlinKernels kernels,
      ExpertKernels shared,
      MoeConfig config,
      int experts,
      MarlinWeights weights) {
    this.kernels = kernels;
    this.config = config;
    this.sizes = PaddedSizes.of(config);
    this.experts = experts;
    this.weights = weights;
    this.type = MarlinKernels.name(config.weightDtype());
    this.shrink = new ShrinkKernel(shared, config.weightDtype(), config.activation().isGated());
    this.sum = new WeightedSum(shared, config);
  }

  /**
   * {@return the launches of a forward}
   *
   * @param plan how
   * @param tileRows rows of a tile of the sort
   * @param of the forward
   */
  GroupedProducts.Forward forward(MarlinPlan plan, int tileRows, GroupedForward of) {
    return new Forward(this, plan, tileRows, of);
  }

  /** Shrinks read x as it was; the products may read it in another order. */
  private void run(Forward f) {
    ForwardLayout at = f.at();
    long middle = f.address(at.middle());
    long x = ordered(f, true, false, f.of().hidden());
    shrink(f, true, f.of().hidden(), sizes.hidden());
    if (f.plan().first().kind().equals(MarlinKernels.SINGLE)) {
      single(f, true, x, middle, false);
    } else {
      product(f, true, false, x, middle);
    }
    long between = ordered(f, false, false, middle);
    shrink(f, false, middle, sizes.intermediate());
    if (f.plan().second().kind().equals(MarlinKernels.SINGLE)) {
      Tensor output = f.of().output();
      single(f, false, between, output.deviceAddress(), output.dtype() == DType.F32);
    } else {
      product(f, false, false, between, f.address(at.y()));
      combine(f);
    }
  }

  /**
   * The products as they are, for deltas of others: w13 goes the way of w2, as one matrix of gate
   * and up, which lie behind each other in whole tiles.
   *
   * @param f of {@link MarlinPlan#composed}
   */
  private ComposedLora.Products plain(Forward f) {
    return new ComposedLora.Products() {
      @Override
      public void product(boolean first, Tensor x, Tensor y) {
        long from = ordered(f, first, true, x.deviceAddress());
        MarlinProducts.this.product(f, first, true, from, y.deviceAddress());
      }

      @Override
      public void combine() {
        MarlinProducts.this.combine(f);
      }
    };
  }

  private void combine(Forward f) {
    sum.run(f.of(), f.plan().naive());
  }

  private void shrink(Forward f, boolean first, long x, int depth) {
    if (f.batch().lora()) {
      shrink.run(
          f.batch(),
          f.plan().shrinks(),
          first,
          x,
          depth,
          f.of().base(),
          f.at().lists(),
          f.at().shrinks());
    }
  }

  /**
   * {@return x, or with act-order its rows in the order of the weights' groups}
   *
   * @param sorted whether x of w13 lies in the order of the sort already, as that of w2 does
   */
  private long ordered(Forward f, boolean first, boolean sorted, long x) {
    PackedMatrices w = first ? weights.first() : weights.second();
    if (w.orders() == null) {
      return x;
    }
    long to = f.ordered(first);
    PairBatch b = f.batch();
    TileLists lists = f.at().lists();
    kernels
        .get("permute_inputs")
        .begin()
        .pointer(x)
        .pointer(to)
        .pointer(w.orders())
        .pointer(b.ids())
        .pointer(b.expertMap())
        .pointer(f.address(lists.pairs()))
        .pointer(f.address(lists.tiles()))
        .pointer(f.address(lists.nums()))
        .i32(b.hasMap())
        .i32(first && !sorted ? 1 : 0)
        .i32(f.plan().naive() ? 1 : 0)
        .i32(b.pairs())
        .i32(b.topK())
        .i32(first ? sizes.hidden() : sizes.intermediate())
        .i32(Math.toIntExact(w.layout().in()))
        .i32(b.globalExperts())
        .i32(experts)
        .launch(b.stream(), f.tiles());
    return to;
  }

  /** A row each: w13 of the pairs, or w2 of the tokens with the weighted sum. */
  private void single(Forward f, boolean first, long x, long y, boolean f32) {
    PackedMatrices w = first ? weights.first() : weights.second();
    ProductPlan plan = first ? f.plan().first() : f.plan().second();
    PairBatch b = f.batch();
    Activation a = config.activation();
    Tensor bias = first ? weights.biases().first() : weights.biases().second();
    boolean ordered = w.orders() != null;
    int outputs = first ? sizes.intermediate() : sizes.hidden();
    int inputs =
        ordered ? Math.toIntExact(w.layout().in()) : first ? sizes.hidden() : sizes.intermediate();
    kernels
        .get(
            MarlinKernels.GEMM,
            "kind",
            plan.kind(),
            "of",
            first ? "w13" : "w2",
            "format",
            w.layout().formatName(),
            "type",
            type)
        .begin()
        .sharedBytes(plan.sharedBytes())
        .pointer(x)
        .pointer(w.codes())
        .pointer(w.ratios(0, 0))
        .pointer(w.zeros(0, 0))
        .pointer(w.channels())
        .pointer(bias)
        .pointer(b.weights())
        .pointer(y)
        .pointer(b.table())
        .pointer(b.ids())
        .pointer(b.expertMap())
        .pointer(b.mapping())
        .pointer(f.address(f.at().shrinks().partial()))
        .i32(b.hasMap())
        .i32(bias == null ? 0 : 1)
        .i32(config.routerWeightOnInput() ? 1 : 0)
        .i32(first && !ordered ? 1 : 0)
        .i32(b.lora() ? 1 : 0)
        .i32(f32 ? 1 : 0)
        .i32(ElementwiseKernels.code(a.kind()))
        .f32(a.alpha())
        .f32(a.beta())
        .f32(a.limit())
        .i32(b.topK())
        .i32(outputs)
        .i32(inputs)
        .i32(b.globalExperts())
        .i32(experts)
        .i32(b.slots())
        .i32(shrink.width(b, first))
        .i32(b.rank())
        .i32(b.lora() ? shrink.splits(b, f.plan().shrinks(), first) : 1)
        .i32(b.lora() ? WAIT_FOR_SHRINK : WAIT_AT_ONCE)
        .i32(w.layout().groupShift())
        .i32(plan.warps())
        .launch(
            b.stream(),
            Math.multiplyExact(
                first ? b.pairs() : b.tokens(), Math.ceilDiv(outputs, plan.outputs())));
  }

  /**
   * @param plain w13 without activation, as one matrix, of rows that lie in the order of the sort
   */
  private void product(Forward f, boolean first, boolean plain, long x, long y) {
    PackedMatrices w = first ? weights.first() : weights.second();
    ProductPlan plan = first ? f.plan().first() : f.plan().second();
    ForwardLayout at = f.at();
    PairBatch b = f.batch();
    TileLists lists = at.lists();
    Activation a = config.activation();
    Tensor bias = first ? weights.biases().first() : weights.biases().second();
    boolean gated = first && a.isGated();
    boolean ends = first && !plain;
    int outputs =
        !first ? sizes.hidden() : plain && gated ? 2 * sizes.intermediate() : sizes.intermediate();
    boolean ordered = w.orders() != null;
    int inputs =
        ordered ? Math.toIntExact(w.layout().in()) : first ? sizes.hidden() : sizes.intermediate();
    int wait = b.lora() ? WAIT_FOR_SHRINK : first || plain || ordered ? WAIT_AT_ONCE : WAIT_FOR_X;
    kernels
        .get(
            MarlinKernels.GEMM,
            "kind",
            plan.kind(),
            "format",
            w.layout().formatName(),
            "type",
            type,
            "rows",
            Integer.toString(plan.rows()))
        .begin()
        .sharedBytes(plan.sharedBytes())
        .pointer(x)
        .pointer(w.codes())
        .pointer(w.ratios(0, 0))
        .pointer(w.zeros(0, 0))
        .pointer(w.channels())
        .pointer(bias)
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
        .i32(ends && config.routerWeightOnInput() && !f.of().batched() ? 1 : 0)
        .i32(first ? 1 : 0)
        .i32(ends && gated ? 1 : 0)
        .i32(ends && !ordered ? 1 : 0)
        .i32(b.lora() ? 1 : 0)
        .i32(f.plan().naive() ? 1 : 0)
        .i32(ends ? ElementwiseKernels.code(a.kind()) : NO_ACTIVATION)
        .f32(a.alpha())
        .f32(a.beta())
        .f32(a.limit())
        .i32(b.pairs())
        .i32(b.topK())
        .i32(outputs)
        .i32(inputs)
        .i32(b.globalExperts())
        .i32(experts)
        .i32(b.slots())
        .i32(shrink.width(b, first))
        .i32(b.rank())
        .i32(b.lora() ? shrink.splits(b, f.plan().shrinks(), first) : 1)
        .i32(f.plan().groupTiles())
        .i32(wait)
        .i32(w.fine() ? 1 : 0)
        .i32(w.layout().groupShift())
        .i32(plan.warps())
        .i32(plan.phase())
        .launch(b.stream(), Math.multiplyExact(f.tiles(), Math.ceilDiv(outputs, plan.outputs())));
  }
}
