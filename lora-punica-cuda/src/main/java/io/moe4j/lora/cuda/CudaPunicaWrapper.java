package io.moe4j.lora.cuda;

import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaStream;
import io.moe4j.cuda.DeviceBuffer;
import io.moe4j.cuda.KernelLaunch;
import io.moe4j.cuda.ops.LeaseCache;
import io.moe4j.cuda.ops.PairSort;
import java.util.concurrent.ConcurrentHashMap;
import org.jspecify.annotations.Nullable;

/**
 * The punica wrapper of NVIDIA GPUs. Tiles of pairs that share an expert and an adapter are shrunk
 * and expanded with matrix instructions, in one launch or two ({@link LoraPath}); what those cannot
 * read (f32 factors or input, odd widths or strides) goes a general way, slower and also in f32.
 *
 * <p>The intermediate {@code A . x} is carried with 17 bits or more, sums are f32, {@code y} is
 * rounded once. The result of a call does not vary from run to run: every sum has a fixed order.
 * Time and memory follow each adapter's own ranks; factors shared by experts are read once a tile
 * from the same place. {@code x} and {@code y} may have any strides (of {@code y}, none may be 0);
 * ids, weights, mapping and expert map must be contiguous.
 *
 * <p>Threads: may be shared. Calls of one stream share scratch memory, calls of different streams
 * run side by side. Nothing is allocated, waited for or read back except when something is seen for
 * the first time: a kernel, an adapter in a slot, a larger batch. So a call can be captured in a
 * graph once it has been run; the graph uses the scratch memory of the stream it was captured on,
 * and sees later adapters in the same slots (after {@link #prepare}, which a layer session's
 * refresh calls). Ranks of a captured call may grow up to 16, 32 or 64 of each of two targets,
 * whichever the capture needed; beyond that, and where ranks take two launches, the replay fails
 * with an error of the device, and the graph must be captured again.
 */
public final class CudaPunicaWrapper implements PunicaWrapper {
  private static final int THREADS = 256;
  private static final int DEFAULT_SHARED = 99 * 1024;

  /** Streams whose scratch is kept when they are idle: who opens many gets it anew. */
  private static final int KEPT_STREAMS = 32;

  private final CudaDevice device;
  private final LaunchPlan.Card card;
  private final LoraPath wish;
  private final LoraKernels kernels;
  private final FactorTables tables;
  private final LeaseCache<StreamScratch> scratch =
      new LeaseCache<>(KEPT_STREAMS, StreamScratch::close);
  private final ConcurrentHashMap<Integer, PairSort> sorts = new ConcurrentHashMap<>();
  private volatile boolean closed;

  /**
   * A wrapper that takes the path the property {@link LoraPath#PROPERTY} names.
   *
   * @param device stays open longer than the wrapper
   */
  public CudaPunicaWrapper(CudaDevice device) {
    this(device, LoraPath.ofProperty());
  }

  /**
   * A wrapper with a path.
   *
   * @param device stays open longer than the wrapper
   * @param path taken where it can serve a call
   */
  public CudaPunicaWrapper(CudaDevice device, LoraPath path) {
    this.device = device;
    this.wish = path;
    int shared = number(device, "shared-bytes-per-block", DEFAULT_SHARED);
    this.kernels = new LoraKernels(device, shared);
    this.card =
        new LaunchPlan.Card(
            number(device, "multiprocessors", 1),
            shared - LoraKernels.RESERVED,
            device.info().capability().map(c -> c.atLeast(9, 0)).orElse(false));
    this.tables = new FactorTables(device, kernels);
  }

  private static int number(CudaDevice device, String property, int otherwise) {
    String value = device.info().properties().get(property);
    return value == null ? otherwise : Integer.parseInt(value);
  }

  /** {@return the path that calls take where they can} */
  public LoraPath path() {
    return wish;
  }

  @Override
  public void prepare(MoeLoraContext context, DeviceStream stream) {
    requireOpen();
    if (context.hasLora()) {
      tables.of(context, stream).close();
    }
  }

  @Override
  public void addLoraW13(PunicaWrapper.W13 call, DeviceStream stream) {
    run(
        w13(
            call.context(),
            call.y(),
            call.x(),
            call.routing(),
            call.gated(),
            call.layout(),
            call.addInputs(),
            stream));
  }

  @Override
  public void addLoraW2(PunicaWrapper.W2 call, DeviceStream stream) {
    run(
        w2(
            call.context(),
            call.y(),
            call.x(),
            call.routing(),
            call.mulRoutedWeight(),
            call.addInputs(),
            stream));
  }

  /** The kernels' table of factors has no column for the router. */
  @Override
  public boolean supports(LoraTarget target) {
    return FactorTable.COLUMNS.contains(target);
  }

  @Override
  public void addLoraLinear(PunicaWrapper.Linear call, DeviceStream stream) {
    if (call.target().isRouted()) {
      throw new IllegalArgumentException(
          "target is "
              + call.target()
              + ", a map of the routed experts; use addLoraW13 or addLoraW2");
    }
    if (!supports(call.target())) {
      throw new IllegalArgumentException(
          "target is " + call.target() + ", accepted are " + FactorTable.COLUMNS);
    }
    if (call.y().dims() != 2) {
      throw new IllegalArgumentException("y is " + call.y() + ", must be [T, out]");
    }
    int tokens = Math.toIntExact(call.y().size(0));
    Tensor rows =
        Tensor.strided(
            call.y().dtype(),
            call.y().memory(),
            call.y().byteOffset(),
            new long[] {tokens, 1, call.y().size(1)},
            new long[] {call.y().stride(0), call.y().stride(0), call.y().stride(1)});
    run(
        new LoraCall(
            call.context(),
            rows,
            call.x(),
            null,
            call.target(),
            1,
            Math.toIntExact(call.y().size(1)),
            false,
            false,
            call.addInputs(),
            tokens,
            1,
            stream));
  }

  static LoraCall w13(
      MoeLoraContext context,
      Tensor y,
      Tensor x,
      ExpertRouting routing,
      boolean gated,
      GateUpLayout layout,
      boolean addInputs,
      DeviceStream stream) {
    if (y.dims() != 3 || (gated && y.size(2) % 2 != 0)) {
      throw new IllegalArgumentException(
          "y is " + y + ", must be [T, K" + (gated ? ", 2I]" : ", I]"));
    }
    return new LoraCall(
        context,
        y,
        x,
        routing,
        gated ? LoraTarget.GATE : LoraTarget.UP,
        gated ? 2 : 1,
        Math.toIntExact(gated ? y.size(2) / 2 : y.size(2)),
        gated && layout == GateUpLayout.INTERLEAVED,
        false,
        addInputs,
        Math.toIntExact(routing.topkIds().size(0)),
        Math.toIntExact(routing.topkIds().size(1)),
        stream);
  }

  static LoraCall w2(
      MoeLoraContext context,
      Tensor y,
      Tensor x,
      ExpertRouting routing,
      boolean mulRoutedWeight,
      boolean addInputs,
      DeviceStream stream) {
    if (y.dims() != 3) {
      throw new IllegalArgumentException("y is " + y + ", must be [T, K, H]");
    }
    return new LoraCall(
        context,
        y,
        x,
        routing,
        LoraTarget.DOWN,
        1,
        Math.toIntExact(y.size(2)),
        false,
        mulRoutedWeight,
        addInputs,
        Math.toIntExact(routing.topkIds().size(0)),
        Math.toIntExact(routing.topkIds().size(1)),
        stream);
  }

  private void requireOpen() {
    if (closed) {
      throw new IllegalStateException("this punica wrapper is closed");
    }
  }

  /** Whether a call changes anything; also brings the table up to date. */
  private FactorTables.@Nullable Use table(LoraCall call) {
    requireOpen();
    if (call.pairs() == 0 || call.out() == 0 || !call.context().hasLora()) {
      return null;
    }
    FactorTables.Use use = tables.of(call.context(), call.stream());
    boolean needed = false;
    try {
      needed = isNeeded(call, use.table());
    } finally {
      if (!needed) {
        use.close();
      }
    }
    return needed ? use : null;
  }

  private static boolean isNeeded(LoraCall call, FactorTable table) {
    boolean any = false;
    for (int s = 0; s < call.slices(); s++) {
      FactorTable.Use use = table.summary().uses().get(call.column() + s);
      if (use.maxRank() > 0) {
        any = true;
        if (use.inFeatures() != call.in() || use.outFeatures() != call.out()) {
          throw new IllegalArgumentException(
              FactorTable.COLUMNS.get(call.column() + s)
                  + " factors map "
                  + use.inFeatures()
                  + " -> "
                  + use.outFeatures()
                  + "; x has rows of "
                  + call.in()
                  + " and y of "
                  + call.out());
        }
      }
    }
    return any;
  }

  private void run(LoraCall call) {
    if (call.routing() != null && call.target() != LoraTarget.DOWN) {
      forgetSort(call.stream());
    }
    try (FactorTables.Use use = table(call)) {
      if (use != null) {
        run(call, use.table());
      }
    }
  }

  private void run(LoraCall call, FactorTable table) {
    FactorTable.Summary summary = table.summary();
    int type = call.xType();
    int columns = call.isFast() ? summary.columns(call.column(), call.slices(), type) : 0;
    boolean fast = columns > 0 && wish != LoraPath.GENERAL;
    try (LeaseCache.Lease<StreamScratch> lease = scratch(call.stream())) {
      StreamScratch mine = lease.value();
      synchronized (mine) {
        if (fast) {
          boolean routed = call.routing() != null;
          LaunchPlan.Problem problem =
              new LaunchPlan.Problem(
                  call.pairs(),
                  routed ? summary.experts() : 1,
                  Math.max(1, summary.adapters()),
                  table.slots(),
                  columns,
                  call.in(),
                  call.out(),
                  call.slices(),
                  call.interleaved());
          LaunchPlan plan = LaunchPlan.of(problem, card, wish);
          fast = plan.path() != LoraPath.GENERAL;
          if (fast) {
            launch(call, table, problem, plan, mine);
          }
        }
        int skip = fast ? type : -1;
        boolean others = false;
        int maxRank = 0;
        for (int s = 0; s < call.slices(); s++) {
          FactorTable.Use use = summary.uses().get(call.column() + s);
          others |= (use.types() & ~(skip < 0 ? 0 : 1 << skip)) != 0;
          maxRank = Math.max(maxRank, use.maxRank());
        }
        if (others) {
          general(call, table, skip, maxRank);
        }
      }
    }
  }

  /** Scratch of a stream; what a captured graph uses stays as long as the wrapper. */
  private LeaseCache.Lease<StreamScratch> scratch(DeviceStream stream) {
    long handle = stream.handle();
    device.makeCurrent();
    boolean records = CudaStream.isCapturing(stream); // before there is a lease to lose
    LeaseCache.Lease<StreamScratch> lease;
    synchronized (scratch) {
      lease = scratch.find(s -> s.stream() == handle);
      if (lease == null) {
        if (!records) { // nothing may be freed inside a capture
          scratch.makeRoom();
        }
        lease = scratch.add(new StreamScratch(device, handle));
      }
    }
    if (records) {
      lease.keep();
    }
    return lease;
  }

  /** A w13 call begins another forward, also where it has nothing to sort. */
  private void forgetSort(DeviceStream stream) {
    long handle = stream.handle();
    try (LeaseCache.Lease<StreamScratch> lease = scratch.find(s -> s.stream() == handle)) {
      if (lease != null) {
        StreamScratch mine = lease.value();
        synchronized (mine) {
          mine.forget();
        }
      }
    }
  }

  private void launch(
      LoraCall call,
      FactorTable table,
      LaunchPlan.Problem problem,
      LaunchPlan plan,
      StreamScratch mine) {
    PairSort.Layout sorted = null;
    long at = 0;
    if (plan.sorted()) {
      sorted =
          PairSort.Layout.of(
              call.pairs(), problem.experts(), table.slots(), plan.tileRows(), plan.tileRows());
      at = mine.sort(sorted.byteSize());
      sort(call, table, problem, sorted, at, mine);
    }
    boolean y32 = call.y().dtype() == DType.F32;
    int type = call.xType();
    if (plan.path() == LoraPath.TWO_KERNELS) {
      long part = mine.part(plan.partFloats(call.pairs()) * Float.BYTES);
      KernelLaunch shrink = kernels.shrink(type, plan).begin();
      shrink.pointer(call.x()).pointer(part);
      who(shrink, call, table, sorted, at);
      shrink.i64(call.x().stride(0)).i32(call.xPerPair() ? 1 : 0).i32(call.in());
      counts(shrink, call, table);
      shrink
          .i32(plan.columns())
          .sharedBytes(plan.shrinkSharedBytes())
          .launch(call.stream(), plan.tiles(), plan.splits(), plan.chunks());
      KernelLaunch expand = kernels.expand(type, y32, plan).begin();
      expand.pointer(part).pointer(call.y());
      who(expand, call, table, sorted, at);
      expand.pointer(weights(call)).i64(call.yRow()).i64(call.out()).i32(plan.splits());
      expand.i32(call.out()).i32(call.interleaved() ? 1 : 0).i32(call.add() ? 1 : 0);
      counts(expand, call, table);
      expand
          .i32(plan.columns())
          .sharedBytes(plan.sharedBytes())
          .launch(call.stream(), plan.tiles(), plan.parts(), 1);
      return;
    }
    KernelLaunch one = kernels.oneShot(type, y32, plan).begin();
    one.pointer(call.x()).pointer(call.y());
    who(one, call, table, sorted, at);
    one.pointer(weights(call)).i64(call.x().stride(0)).i64(call.yRow()).i64(call.out());
    one.i32(call.xPerPair() ? 1 : 0).i32(call.in()).i32(call.out());
    one.i32(call.interleaved() ? 1 : 0).i32(call.add() ? 1 : 0);
    counts(one, call, table);
    one.i32(plan.columns())
        .sharedBytes(plan.sharedBytes())
        .cluster(plan.cluster())
        .launch(call.stream(), Math.multiplyExact(plan.tiles(), plan.cluster()), plan.parts(), 1);
  }

  private void sort(
      LoraCall call,
      FactorTable table,
      LaunchPlan.Problem problem,
      PairSort.Layout layout,
      long at,
      StreamScratch mine) {
    ExpertRouting routing = call.routing();
    boolean down = call.target() == LoraTarget.DOWN;
    boolean sorted = routing != null && down && mine.isSorted(call.context(), routing, layout);
    // Once: the caller may write other ids to the same tensor before the next forward.
    mine.forget();
    if (sorted) {
      return;
    }
    ExpertRouting by = routing;
    if (by == null || problem.experts() == 1) {
      // All pairs take their factors from one place: whichever expert they have, if any.
      DeviceBuffer ids = mine.ids(4L * call.pairs());
      KernelLaunch one = kernels.oneExpert.begin();
      one.pointer(routing == null ? null : routing.topkIds());
      one.pointer(routing == null ? null : routing.expertMap());
      one.pointer(ids.memory().address()).i32(call.pairs()).i32(globalExperts(call));
      one.launch(call.stream(), Math.ceilDiv(call.pairs(), THREADS));
      by =
          new ExpertRouting(
              ids.tensor(DType.I32, call.tokens(), call.topK()),
              ids.tensor(DType.F32, call.tokens(), call.topK()),
              null);
    }
    Tensor mapping = call.context().tokenLoraMapping();
    sorts
        .computeIfAbsent(table.slots(), n -> new PairSort(device, n))
        .run(
            by,
            mapping.dims() == 1 ? mapping : mapping.reshape(call.tokens()),
            null,
            layout,
            at,
            call.stream());
    if (routing != null && !down) {
      mine.sorted(call.context(), routing, layout);
    }
  }

  private static int globalExperts(LoraCall call) {
    ExpertRouting routing = call.routing();
    Tensor map = routing == null ? null : routing.expertMap();
    return map == null ? Integer.MAX_VALUE : Math.toIntExact(map.size(0));
  }

  private static long weights(LoraCall call) {
    ExpertRouting routing = call.routing();
    return routing == null || !call.weighted() ? 0 : routing.topkWeights().deviceAddress();
  }

  private static void who(
      KernelLaunch launch,
      LoraCall call,
      FactorTable table,
      PairSort.@Nullable Layout sorted,
      long at) {
    ids(launch, call, table);
    launch
        .pointer(sorted == null ? 0 : at + sorted.shrinkTiles())
        .pointer(sorted == null ? 0 : at + sorted.pairOfRow())
        .pointer(sorted == null ? 0 : at + sorted.counts() + Integer.BYTES);
  }

  private static void ids(KernelLaunch launch, LoraCall call, FactorTable table) {
    ExpertRouting routing = call.routing();
    launch
        .pointer(table.address())
        .pointer(routing == null ? null : routing.topkIds())
        .pointer(routing == null ? null : routing.expertMap())
        .pointer(call.context().tokenLoraMapping());
  }

  private static void counts(KernelLaunch launch, LoraCall call, FactorTable table) {
    launch
        .i32(call.pairs())
        .i32(call.topK())
        .i32(globalExperts(call))
        .i32(table.slots())
        .i32(call.column())
        .i32(call.slices());
  }

  private void general(LoraCall call, FactorTable table, int skip, int maxRank) {
    Tensor x = call.x();
    Tensor y = call.y();
    long perPair = call.xPerPair() ? x.stride(0) : 0;
    KernelLaunch any = kernels.any.begin();
    any.pointer(x).pointer(y);
    ids(any, call, table);
    any.pointer(weights(call));
    any.i64(call.xPerPair() ? x.stride(0) * call.topK() : x.stride(0)).i64(perPair);
    any.i64(x.stride(1)).i64(y.stride(0)).i64(y.stride(1)).i64(y.stride(2));
    any.i64(call.interleaved() ? 1 : call.out()).i64(call.interleaved() ? 2 : 1);
    any.i32(call.xType()).i32(LoraKernels.code(y.dtype())).i32(skip).i32(call.in());
    any.i32(call.out()).i32(call.add() ? 1 : 0);
    counts(any, call, table);
    any.i32(maxRank);
    any.sharedBytes(4 * maxRank).launch(call.stream(), call.pairs(), columnBlocks(call), 1);
  }

  private int columnBlocks(LoraCall call) {
    int most = Math.ceilDiv(call.out(), THREADS);
    return Math.max(1, Math.min(most, 4 * card.multiprocessors() / call.pairs()));
  }

  /**
   * Adds what a call without {@code addInputs} wrote into {@code delta}; elements that it did not
   * write are not read.
   */
  void addDelta(LoraCall call, Tensor delta) {
    try (FactorTables.Use use = table(call)) {
      if (use != null) {
        addDelta(call, use.table(), delta);
      }
    }
  }

  private void addDelta(LoraCall call, FactorTable table, Tensor delta) {
    Tensor y = call.y();
    if (delta.dtype() != y.dtype()
        || !delta.isContiguous()
        || !java.util.Arrays.equals(delta.shape(), y.shape())) {
      throw new IllegalArgumentException(
          "delta is " + delta + ", must be contiguous and have the dtype and shape of y, " + y);
    }
    KernelLaunch add = kernels.addDelta.begin();
    add.pointer(delta).pointer(y);
    ids(add, call, table);
    add.i64(y.stride(0)).i64(y.stride(1)).i64(y.stride(2));
    add.i64(call.interleaved() ? 1 : call.out()).i64(call.interleaved() ? 2 : 1);
    add.i32(LoraKernels.code(y.dtype())).i32(call.out());
    counts(add, call, table);
    add.launch(call.stream(), call.pairs(), columnBlocks(call), 1);
  }

  /** Gives the memory back. Its work must have finished, and captured graphs are dead after it. */
  @Override
  public synchronized void close() {
    if (!closed) {
      closed = true;
      tables.close();
      scratch.closeAll();
    }
  }
}
