package io.moe4j.oracle;

import io.moe4j.api.comm.Communicator;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.MoeLayerWeights;
import java.lang.foreign.Arena;
import java.util.ArrayList;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Objects;
import java.util.Set;
import java.util.concurrent.atomic.LongAdder;
import org.jspecify.annotations.Nullable;

/**
 * One MoE block, ready to run: router, experts of the chosen backend, latent projections, shared
 * expert. Built once, run many times.
 *
 * <pre>{@code
 * try (MoeLayer layer = MoeLayer.builder(config, weights).build()) {
 *   layer.forward(hidden, output);
 * }
 * }</pre>
 *
 * <p><b>Threads.</b> {@code forward} may be called by any number of threads at once. Each running
 * call holds a piece of scratch memory from the layer's {@link ScratchPool}; when all are in use, a
 * caller waits. On a device other than the host, forwards are enqueued on the device's default
 * stream one after the other, and {@code forward} returns before they have run; {@link #newSession}
 * is for engines with streams of their own.
 *
 * <p><b>Memory.</b> The caller owns the request's tensors, and keeps the weights alive until the
 * layer is closed. After the first calls, {@code forward} takes nothing from the device, and on the
 * Java heap a few small objects whatever {@code T} is. Requests with more tokens than the config's
 * {@code maxTokens} run in pieces of that many.
 *
 * <p><b>Expert parallelism.</b> With an expert map in the config the output is this rank's part:
 * its own experts, plus the shared expert. Where the parts of several ranks are summed, leave the
 * shared expert out of the config of all but one.
 *
 * <p><b>Mapped files.</b> Weights of a checkpoint are views of mapped files, and on the host a
 * layer reads them at every forward. Files must not be changed in place meanwhile (replacing them
 * by a rename is fine). If one becomes shorter or longer, forwards throw {@link
 * io.moe4j.api.CheckpointException}, before they compute or, if it happens while they do, after:
 * the length of each file is asked both times. The process lives: on HotSpot a read of a page that
 * is gone becomes an exception in the kernels of {@code backend-cpu} too. Not covered are files
 * overwritten at their full length, backends that read mapped weights in native code, and virtual
 * machines other than HotSpot. {@link Builder#copyWeights()} takes a layer off its files.
 *
 * <p><b>Closing</b> waits for the forwards that are running, refuses new ones with {@link
 * IllegalStateException}, and releases everything, open sessions included. It is harmless twice.
 */
public final class MoeLayer implements AutoCloseable {
  private final MoeConfig config;
  private final Selection selection;
  private final Device device;
  private final LayerParts parts;
  private final ForwardChecks checks;
  private final ScratchPool pool;
  private final ScratchLayout layout;
  private final MappedSources sources;
  private final long weightBytes;
  private final LongAdder forwards = new LongAdder();
  private final LongAdder failures = new LongAdder();
  private final LongAdder tokensDone = new LongAdder();
  private final LongAdder nanos = new LongAdder();
  private final InFlightCalls calls = new InFlightCalls("the layer");
  private final Set<MoeSession> sessions = new LinkedHashSet<>();

  private MoeLayer(
      Selection selection,
      Device device,
      LayerParts parts,
      MoeLayerWeights weights,
      ScratchPool pool,
      MappedSources sources) {
    this.config = selection.config();
    this.selection = selection;
    this.device = device;
    this.parts = parts;
    this.pool = pool;
    this.sources = sources;
    this.weightBytes = WeightTensors.byteSize(weights);
    this.layout = parts.layout(config.maxTokens());
    this.checks =
        new ForwardChecks(
            config,
            device.info().id(),
            weights.router(),
            weights.layerIndex(),
            parts.isMonolithic() ? selection.chosenBackend().name() : "");
    Rehearsal.once(config, checks);
  }

  /**
   * A builder.
   *
   * @param config the layer
   * @param weights fits {@code config}; the memory stays alive until the layer is closed
   * @return a new builder
   */
  public static Builder builder(MoeConfig config, MoeLayerWeights weights) {
    return new Builder(config, weights);
  }

  /** {@return what the layer was built for} */
  public MoeConfig config() {
    return config;
  }

  /** {@return which backend computes it, and why} */
  public Selection selection() {
    return selection;
  }

  /** {@return what it has done so far, and the memory it stands for} */
  public LayerStats stats() {
    return new LayerStats(
        forwards.sum(), failures.sum(), tokensDone.sum(), nanos.sum(), weightBytes, layout.bytes());
  }

  /** {@return where its forwards get their scratch memory} */
  public ScratchPool scratchPool() {
    return pool;
  }

  /**
   * What a layer will take, before its weights are there: for this machine, on the backend that
   * {@link Builder#build()} would choose. The backend prepares weights without contents, which
   * takes no memory worth speaking of where it leaves weights in their place, as {@code
   * backend-cpu} does with those that are not quantised.
   *
   * @param config the layer
   * @return bytes of weights and scratch
   * @throws UnsupportedConfigException if no backend fits
   * @since 0.1.0
   */
  public static LayerPlan plan(MoeConfig config) {
    try (MoeOracle oracle = MoeOracle.discover()) {
      return LayerPlan.of(config, oracle, null);
    }
  }

  /**
   * {@link #plan(MoeConfig)} with the choice in the caller's hands.
   *
   * @param config the layer
   * @param oracle who chooses
   * @param backend the backend to take, or null for the best one
   * @return bytes of weights and scratch
   * @throws UnsupportedConfigException if no backend fits, or the one asked for does not
   * @since 0.1.0
   */
  public static LayerPlan plan(MoeConfig config, MoeOracle oracle, @Nullable String backend) {
    return LayerPlan.of(config, oracle, backend);
  }

  /** {@return the device it runs on; open as long as the layer is, unless the caller gave it} */
  public Device device() {
    return device;
  }

  /**
   * The base model.
   *
   * @param hidden {@code [T, H]}, the config's {@code inputDtype}
   * @param output {@code [T, H]}, F32, BF16 or F16, overwritten; may not overlap {@code hidden}
   * @throws IllegalArgumentException naming the argument, what was given, what is accepted
   * @throws IllegalStateException if the layer is closed
   */
  public void forward(Tensor hidden, Tensor output) {
    forward(MoeForward.of(hidden, output));
  }

  /**
   * With adapters, own logits or routing, or the choice written out.
   *
   * @param request tensors in and out; on a device alive until its default stream has done the work
   * @throws IllegalArgumentException naming the argument, what was given, what is accepted: shapes,
   *     dtypes, memory of another device; on the host also ids outside {@code -1..E-1} and slots
   *     outside {@code -1..maxLoras-1}
   * @throws io.moe4j.api.CheckpointException if a mapped file with weights or inputs was changed in
   *     place; what the output then holds is undefined
   * @throws io.moe4j.api.MoeException if the backend or the device fails, whatever it threw; the
   *     message names it and its jar
   * @throws io.moe4j.api.DeviceException if no scratch memory became free within the pool's
   *     deadline, where it has one
   * @throws IllegalStateException if the layer is closed
   */
  public void forward(MoeForward request) {
    calls.enter();
    try {
      if (!admit(request, layout)) {
        return;
      }
      Events.Forward event = new Events.Forward();
      event.begin();
      long start = System.nanoTime();
      Scratch scratch = pool.borrow(layout.bytes());
      event.scratchWait = System.nanoTime() - start;
      try {
        compute(request, layout, scratch, device.defaultStream(), event, start);
      } finally {
        pool.giveBack(scratch);
      }
    } finally {
      calls.leave();
    }
  }

  /** {@return whether there is anything to do} */
  private boolean admit(MoeForward request, ScratchLayout at) {
    sources.requireIntact(request);
    try {
      checks.require(request);
    } catch (InternalError e) { // ids and mappings may be mapped
      throw Faults.of(toString(), "could not read the request", e);
    }
    parts.requireOnePiece(request, at);
    return request.hidden().size(0) > 0 || parts.isCollective();
  }

  private void compute(
      MoeForward request,
      ScratchLayout at,
      Scratch scratch,
      DeviceStream stream,
      Events.Forward event,
      long start) {
    boolean done = false;
    try {
      compute(request, at, scratch, stream);
      done = true;
    } finally {
      long tokens = request.hidden().size(0);
      if (done) {
        forwards.increment();
        tokensDone.add(tokens);
        nanos.add(System.nanoTime() - start);
      } else {
        failures.increment();
      }
      event.end();
      if (event.shouldCommit()) {
        event.backend = selection.chosenBackend().name();
        event.device = device.info().id().toString();
        event.tokens = tokens;
        event.lora = request.lora() != null && request.lora().hasLora();
        event.failed = !done;
        event.commit();
      }
    }
  }

  private void compute(MoeForward request, ScratchLayout at, Scratch scratch, DeviceStream stream) {
    try {
      parts.forward(request, at, scratch, stream);
      Faults.settle();
    } catch (Throwable e) {
      parts.abort(e);
      if (Faults.isMemoryFault(e)) {
        sources.requireIntact(request); // says which file it was
      }
      throw Faults.of(Faults.who(selection.chosenBackend()), "failed in a forward", e);
    }
    sources.requireIntact(request); // what was cut off in a page's middle reads as zeros
  }

  /** A session's forward. */
  void run(MoeForward request, ScratchLayout layout, Scratch scratch, DeviceStream stream) {
    calls.enter();
    try {
      if (admit(request, layout)) {
        Events.Forward event = new Events.Forward();
        event.begin();
        compute(request, layout, scratch, stream, event, System.nanoTime());
      }
    } finally {
      calls.leave();
    }
  }

  /** A session's refresh. */
  void refresh(MoeLoraContext context, DeviceStream stream) {
    calls.enter();
    try {
      checks.requireLayer(context);
      parts.refresh(context, stream);
    } finally {
      calls.leave();
    }
  }

  /**
   * A view of the layer with scratch memory of its own.
   *
   * @param maxTokens the largest {@code T} that is to run in one piece, {@code 1..config.maxTokens}
   * @return the session, owned by the caller; closed with the layer at the latest
   * @throws IllegalStateException if the layer is closed
   */
  public MoeSession newSession(int maxTokens) {
    if (maxTokens < 1 || maxTokens > config.maxTokens()) {
      throw new IllegalArgumentException(
          "maxTokens is " + maxTokens + ", must be 1.." + config.maxTokens());
    }
    calls.enter();
    try {
      MoeSession session = new MoeSession(this, parts.layout(maxTokens), device.defaultStream());
      synchronized (sessions) {
        sessions.add(session);
      }
      return session;
    } finally {
      calls.leave();
    }
  }

  void forget(MoeSession session) {
    synchronized (sessions) {
      sessions.remove(session);
    }
  }

  @Override
  public void close() {
    if (!calls.close()) {
      return;
    }
    List<MoeSession> open;
    synchronized (sessions) {
      open = List.copyOf(sessions);
    }
    try {
      open.forEach(MoeSession::close);
      device.defaultStream().synchronize();
    } finally {
      parts.close();
    }
  }

  @Override
  public String toString() {
    return "MoeLayer[" + selection.chosenBackend().name() + " on " + device.info().id() + "]";
  }

  /** Collects what a layer is built from. Not thread-safe. */
  public static final class Builder {
    private final MoeConfig config;
    private final MoeLayerWeights weights;
    private @Nullable MoeOracle oracle;
    private @Nullable String backend;
    private @Nullable Platform platform;
    private @Nullable Device device;
    private @Nullable ScratchPool pool;
    private boolean copyWeights;
    private @Nullable Communicator communicator;
    private @Nullable String exchangeName;

    private Builder(MoeConfig config, MoeLayerWeights weights) {
      this.config = Objects.requireNonNull(config, "config");
      this.weights = Objects.requireNonNull(weights, "weights");
    }

    /**
     * Who chooses. Without one, the layer looks on the class path itself.
     *
     * @param oracle stays the caller's; open as long as the layer is
     * @return this
     */
    public Builder oracle(MoeOracle oracle) {
      this.oracle = Objects.requireNonNull(oracle, "oracle");
      return this;
    }

    /**
     * The backend to take instead of the best one.
     *
     * @param name a backend's name, or null for the best one
     * @return this
     */
    public Builder backend(@Nullable String name) {
      this.backend = name;
      return this;
    }

    /**
     * The machine to choose for, instead of what the device providers find.
     *
     * @param platform a machine with the devices that are really here
     * @return this
     */
    public Builder platform(Platform platform) {
      this.platform = Objects.requireNonNull(platform, "platform");
      return this;
    }

    /**
     * The device to run on. Without one, the layer opens the preferred device of the chosen
     * backend's type. Layers of one model share a device this way.
     *
     * @param device stays the caller's; open as long as the layer is
     * @return this
     */
    public Builder device(Device device) {
      this.device = Objects.requireNonNull(device, "device");
      return this;
    }

    /**
     * The scratch memory to use. Without one, the layer has a pool of its own.
     *
     * @param pool of the same device; stays the caller's; open as long as the layer is
     * @return this
     */
    public Builder scratchPool(ScratchPool pool) {
      this.pool = Objects.requireNonNull(pool, "pool");
      return this;
    }

    /**
     * Copies weights out of mapped files when the layer is built, so that it does not depend on the
     * files any more. It costs memory of the weights' size, which mapped weights share with other
     * processes and give back under pressure. Not needed on a GPU, where weights are uploaded.
     *
     * @return this
     */
    public Builder copyWeights() {
      this.copyWeights = true;
      return this;
    }

    /**
     * The ranks that share the layer with this one. Every rank builds its layer, and every forward
     * runs on all of them, with {@code T = 0} where a rank has no tokens; adapters stand in the
     * same slots everywhere.
     *
     * @param communicator of {@code config.parallel()}'s ranks; stays the caller's; open as long as
     *     the layer is
     * @return this
     */
    public Builder communicator(Communicator communicator) {
      this.communicator = Objects.requireNonNull(communicator, "communicator");
      return this;
    }

    /**
     * How rows come to their experts, instead of what suits the layer best. The same on every rank.
     *
     * @param name {@code gather}, {@code alltoall} or that of another jar; null for the best
     * @return this
     * @since 0.2.0
     */
    public Builder exchange(@Nullable String name) {
      this.exchangeName = name;
      return this;
    }

    /**
     * Chooses, opens, prepares. May be slow: weights are repacked and uploaded here.
     *
     * @return the layer, owned by the caller
     * @throws IllegalArgumentException if the weights do not fit the config, or the given parts do
     *     not fit each other
     * @throws UnsupportedConfigException if no backend fits, or the one asked for does not
     * @throws io.moe4j.api.DeviceException if the device cannot be opened; names the jar to add if
     *     one is missing
     * @throws io.moe4j.api.CheckpointException if a mapped file with weights is closed, or was
     *     changed in place
     * @throws io.moe4j.api.MoeException if the backend fails or breaks its contract, whatever it
     *     threw; the message names it and its jar
     */
    public MoeLayer build() {
      weights.requireFits(config);
      MappedSources files = MappedSources.of(weights);
      files.requireIntact();
      List<AutoCloseable> owned = new ArrayList<>();
      try {
        MoeLayerWeights used = weights;
        if (copyWeights) {
          Arena arena = Arena.ofShared();
          owned.add(arena);
          used = WeightTensors.copyMapped(weights, arena);
        }
        MoeLayer layer = build(used, owned);
        files.requireIntact();
        Faults.settle();
        return layer;
      } catch (RuntimeException | Error e) {
        try {
          LayerParts.closeAll(owned);
        } catch (RuntimeException again) {
          e.addSuppressed(again);
        }
        if (Faults.isMemoryFault(e)) {
          throw Faults.of("the layer's weights", "cannot be read", e);
        }
        throw e;
      }
    }

    private MoeLayer build(MoeLayerWeights used, List<AutoCloseable> owned) {
      MoeOracle who = oracle;
      if (who == null) {
        who = MoeOracle.discover();
        owned.add(who);
      }
      Device where = device != null ? device : pool != null ? pool.device() : null;
      Selection selection = who.select(config, machine(who, where), backend);
      FoundBackend chosen = selection.chosenBackend();
      if (where == null) {
        DeviceId id =
            selection.platform().device(chosen.deviceType()).map(DeviceInfo::id).orElseThrow();
        where = who.catalog().openDevice(chosen, id);
        owned.add(where);
      }
      ScratchPool scratch = pool;
      if (scratch == null) {
        scratch = new ScratchPool(where);
        owned.add(scratch);
      } else if (!scratch.device().info().id().equals(where.info().id())) {
        throw new IllegalArgumentException(
            "scratchPool is on "
                + scratch.device().info().id()
                + ", the layer on "
                + where.info().id());
      }
      requireSameMemory(where);
      Exchanges.Choice exchange =
          Exchanges.choose(config, communicator, who.catalog().exchanges(), exchangeName);
      LayerParts parts =
          LayerParts.prepare(
              config, used, who.catalog(), chosen, where, exchange.provider(), communicator, owned);
      // Elsewhere the weights have been uploaded.
      MappedSources read =
          ScratchPool.isHost(where) ? MappedSources.of(used) : MappedSources.none();
      return new MoeLayer(
          selection.withLayer(exchange.explanation(), parts.facts()),
          where,
          parts,
          used,
          scratch,
          read);
    }

    private void requireSameMemory(Device where) {
      if (communicator != null
          && communicator.size() > 1
          && !communicator.deviceType().equals(where.info().id().type())) {
        throw new IllegalArgumentException(
            "communicator "
                + communicator.description()
                + " carries memory of "
                + communicator.deviceType()
                + ", the layer is on "
                + where.info().id()
                + "; give the builder a device of that type");
      }
    }

    /** A given device is the only one that may be chosen for. */
    private Platform machine(MoeOracle who, @Nullable Device given) {
      Platform p = platform != null ? platform : who.catalog().detectPlatform();
      if (given == null) {
        return p;
      }
      DeviceInfo info = given.info();
      return new Platform(List.of(info), p.absent());
    }
  }
}
