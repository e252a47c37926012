package io.moe4j.lora;

import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.util.List;
import java.util.concurrent.ForkJoinPool;
import java.util.concurrent.ForkJoinTask;
import java.util.concurrent.atomic.AtomicInteger;
import org.jspecify.annotations.Nullable;

/**
 * The punica wrapper of the host. Pairs are sorted by (expert, slot) once a call, so that a mixed
 * batch costs one pass whatever the number of adapters; each group of pairs widens its factors to
 * f32 once, and each target has its own rank.
 *
 * <p>Factors, {@code x} and {@code y} may be F32, BF16 or F16 in any mix and have any strides (of
 * {@code y}, none may be 0). Any rank is accepted. An expert id that no factors cover is left alone
 * like -1; where every adapter shares its factors across experts, the number of experts is not
 * known here and only negative and unmapped ids are.
 *
 * <p>Threads: may be shared; calls keep scratch memory, which grows to the largest call, in a pool.
 * Large calls also use threads of the {@linkplain ForkJoinPool#commonPool() common pool}. The
 * result does not depend on the number of threads.
 */
public final class CpuPunicaWrapper implements PunicaWrapper {
  /** Multiply-adds below which another thread costs more than it brings. */
  private static final long MIN_PARALLEL_WORK = 1 << 20;

  private static final List<LoraTarget> GATE_UP = List.of(LoraTarget.GATE, LoraTarget.UP);
  private static final List<LoraTarget> UP = List.of(LoraTarget.UP);
  private static final List<LoraTarget> DOWN = List.of(LoraTarget.DOWN);

  private final int threads;
  private final Pool<PairPlan> plans;
  private final Pool<DeltaTile> tiles;

  /**
   * A wrapper with scratch memory of its own.
   *
   * @param threads the most threads of one call, the caller's included; at least 1
   */
  public CpuPunicaWrapper(int threads) {
    this(threads, FloatKernels.best());
  }

  CpuPunicaWrapper(int threads, FloatKernels kernels) {
    if (threads < 1) {
      throw new IllegalArgumentException("threads is " + threads + ", must be at least 1");
    }
    this.threads = threads;
    this.plans = new Pool<>(2 * threads, PairPlan::new);
    this.tiles = new Pool<>(4 * threads, () -> new DeltaTile(kernels));
  }

  /** {@return one for everybody, with as many threads as the machine has processors} */
  public static CpuPunicaWrapper shared() {
    return Shared.INSTANCE;
  }

  private static final class Shared {
    private static final CpuPunicaWrapper INSTANCE =
        new CpuPunicaWrapper(Runtime.getRuntime().availableProcessors());
  }

  @Override
  public void addLoraW13(PunicaWrapper.W13 call, DeviceStream stream) {
    requireHost(stream);
    int tokens = Math.toIntExact(call.routing().topkIds().size(0));
    int topK = Math.toIntExact(call.routing().topkIds().size(1));
    int pairs = Math.multiplyExact(tokens, topK);
    requireFloat("y", call.y(), 3);
    requireFloat("x", call.x(), 2);
    if (call.y().size(0) != tokens
        || call.y().size(1) != topK
        || (call.gated() && call.y().size(2) % 2 != 0)) {
      throw new IllegalArgumentException(
          "y is "
              + call.y()
              + ", must be ["
              + tokens
              + ", "
              + topK
              + (call.gated() ? ", 2I]" : ", I]"));
    }
    if (call.x().size(0) != tokens && call.x().size(0) != pairs) {
      throw new IllegalArgumentException(
          "x is "
              + call.x()
              + ", must have "
              + tokens
              + " rows, one a token, or "
              + pairs
              + ", one a pair");
    }
    if (pairs == 0 || !call.context().hasLora()) {
      return;
    }
    Rows in =
        call.x().size(0) == tokens ? Rows.perToken(call.x(), topK) : Rows.flatPairs(call.x(), topK);
    List<Rows> out;
    if (call.gated()) {
      long width = call.y().size(2) / 2;
      boolean halves = call.layout() == GateUpLayout.HALVES;
      Tensor gate = halves ? call.y().narrow(2, 0, width) : call.y().sliced(2, 0, width, 2);
      Tensor up = halves ? call.y().narrow(2, width, width) : call.y().sliced(2, 1, width, 2);
      out = List.of(Rows.perPair(gate), Rows.perPair(up));
    } else {
      out = List.of(Rows.perPair(call.y()));
    }
    DeltaTile.Job job =
        new DeltaTile.Job(call.gated() ? GATE_UP : UP, out, in, null, call.addInputs());
    run(call.context(), job, pairs, call.routing());
  }

  @Override
  public void addLoraW2(PunicaWrapper.W2 call, DeviceStream stream) {
    requireHost(stream);
    int tokens = Math.toIntExact(call.routing().topkIds().size(0));
    int topK = Math.toIntExact(call.routing().topkIds().size(1));
    int pairs = Math.multiplyExact(tokens, topK);
    requireFloat("y", call.y(), 3);
    requireFloat("x", call.x(), 2);
    if (call.y().size(0) != tokens || call.y().size(1) != topK) {
      throw new IllegalArgumentException(
          "y is " + call.y() + ", must be [" + tokens + ", " + topK + ", H]");
    }
    if (call.x().size(0) != pairs) {
      throw new IllegalArgumentException(
          "x is " + call.x() + ", must have " + pairs + " rows, one a pair");
    }
    if (pairs == 0 || !call.context().hasLora()) {
      return;
    }
    Rows in = Rows.flatPairs(call.x(), topK);
    Rows weights = call.mulRoutedWeight() ? Rows.scalars(call.routing().topkWeights()) : null;
    DeltaTile.Job job =
        new DeltaTile.Job(DOWN, List.of(Rows.perPair(call.y())), in, weights, call.addInputs());
    run(call.context(), job, pairs, call.routing());
  }

  @Override
  public void addLoraLinear(PunicaWrapper.Linear call, DeviceStream stream) {
    requireHost(stream);
    if (call.target().isRouted()) {
      throw new IllegalArgumentException(
          "target is "
              + call.target()
              + ", a map of the routed experts; use addLoraW13 or addLoraW2");
    }
    requireFloat("y", call.y(), 2);
    requireFloat("x", call.x(), 2);
    if (call.x().size(0) != call.y().size(0)) {
      throw new IllegalArgumentException(
          "x is " + call.x() + " and y " + call.y() + ", must have equal rows");
    }
    int tokens = Math.toIntExact(call.y().size(0));
    if (tokens == 0 || !call.context().hasLora()) {
      return;
    }
    run(
        call.context(),
        new DeltaTile.Job(
            List.of(call.target()),
            List.of(Rows.perToken(call.y(), 1)),
            Rows.perToken(call.x(), 1),
            null,
            call.addInputs()),
        tokens,
        null);
  }

  private void run(
      MoeLoraContext context, DeltaTile.Job job, int pairs, @Nullable ExpertRouting routing) {
    int topK = job.x().topK();
    Tensor mapping = context.tokenLoraMapping();
    int tokens = pairs / topK;
    if (mapping.elementCount() != tokens || mapping.dtype() != DType.I32) {
      throw new IllegalArgumentException(
          "tokenLoraMapping is "
              + mapping
              + ", must be I32 with one entry for each of "
              + tokens
              + " tokens");
    }
    Tensor column =
        mapping.dims() == 1 ? mapping.expand(1).transpose(0, 1) : mapping.reshape(tokens, 1);
    Tensor map = routing == null ? null : routing.expertMap();
    PairPlan plan = plans.take();
    try {
      plan.build(
          context,
          job.targets(),
          pairs,
          routing == null ? null : Rows.scalars(routing.topkIds()),
          map == null ? null : Rows.scalars(map.expand(1).transpose(0, 1)),
          map == null ? 0 : Math.toIntExact(map.size(0)),
          Rows.perToken(column, topK));
      if (plan.groupCount() > 0) {
        requireWidths(job, plan);
        runGroups(job, plan);
      }
    } finally {
      plan.clear();
      plans.give(plan);
    }
  }

  /** Factors that do not fit the call's tensors are caught before anything is written. */
  private static void requireWidths(DeltaTile.Job job, PairPlan plan) {
    for (int g = 0; g < plan.groupCount(); g++) {
      for (int i = 0; i < job.targets().size(); i++) {
        LoraFactors f = plan.layer(g).get(job.targets().get(i));
        if (f != null
            && (f.inFeatures() != job.x().width() || f.outFeatures() != job.y().get(i).width())) {
          throw new IllegalArgumentException(
              job.targets().get(i)
                  + " factors are a "
                  + f.a()
                  + ", b "
                  + f.b()
                  + "; x has rows of "
                  + job.x().width()
                  + " and y of "
                  + job.y().get(i).width());
        }
      }
    }
  }

  private void runGroups(DeltaTile.Job job, PairPlan plan) {
    int groups = plan.groupCount();
    long work =
        (long) plan.pairCount() * plan.maxRank() * (job.x().width() + job.y().getFirst().width());
    int workers = work < MIN_PARALLEL_WORK ? 1 : Math.min(threads, groups);
    AtomicInteger next = new AtomicInteger();
    if (workers == 1) {
      drain(job, plan, next);
      return;
    }
    ForkJoinTask<?>[] others = new ForkJoinTask<?>[workers - 1];
    for (int i = 0; i < others.length; i++) {
      others[i] = ForkJoinPool.commonPool().submit(() -> drain(job, plan, next));
    }
    try {
      drain(job, plan, next);
    } finally {
      // Nobody may read the plan any more when it goes back to the pool.
      next.set(groups);
      for (ForkJoinTask<?> t : others) {
        t.join();
      }
    }
  }

  private void drain(DeltaTile.Job job, PairPlan plan, AtomicInteger next) {
    DeltaTile tile = tiles.take();
    try {
      int groups = plan.groupCount();
      for (int g = next.getAndIncrement(); g < groups; g = next.getAndIncrement()) {
        tile.run(job, plan, g);
      }
    } finally {
      tiles.give(tile);
    }
  }

  private static void requireHost(DeviceStream stream) {
    if (!stream.device().type().equals(DeviceType.CPU)) {
      throw new IllegalArgumentException(
          "stream belongs to " + stream.device() + ", this punica wrapper runs on the host");
    }
  }

  private static void requireFloat(String name, Tensor t, int dims) {
    if (t.dims() != dims || !Tensors.isFloat(t.dtype()) || !t.isHost()) {
      throw new IllegalArgumentException(
          name
              + " is "
              + t
              + ", must be F32, BF16 or F16 with "
              + dims
              + " dimensions in host memory");
    }
  }
}
