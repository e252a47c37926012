package io.moe4j.oracle;

import io.moe4j.api.MoeException;
import io.moe4j.api.comm.CommException;
import io.moe4j.api.comm.Communicator;
import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.spi.ExchangeInputs;
import io.moe4j.api.spi.ExchangedRows;
import io.moe4j.api.spi.ExpertExchange;
import io.moe4j.api.spi.ExpertExchangeProvider;
import io.moe4j.api.spi.Experts;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.spi.Fact;
import io.moe4j.api.spi.LoraExperts;
import io.moe4j.api.spi.ModularExperts;
import io.moe4j.api.spi.MonolithicExperts;
import io.moe4j.api.spi.MonolithicInputs;
import io.moe4j.api.spi.Support;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.MoeLayerWeights;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import java.util.function.Supplier;
import org.jspecify.annotations.Nullable;

/**
 * The prepared parts of a layer, and the order in which they run. Stateless once built: everything
 * that changes is in the request and the scratch.
 */
final class LayerParts {
  /** More than anybody reads. */
  private static final int MAX_FACTS = 16;

  private final MoeConfig config;
  private final FoundBackend backend;
  private final Experts experts;
  private final BlockOps block;
  private final boolean routerLora;
  private final @Nullable Tensor expertMap;
  private final @Nullable Tensor correctionBias;
  private final ExpertExchange exchange;
  private final @Nullable Communicator communicator;

  /** What was opened, in that order. */
  private final List<AutoCloseable> owned;

  private LayerParts(
      MoeConfig config,
      FoundBackend backend,
      Experts experts,
      BlockOps block,
      @Nullable Tensor expertMap,
      @Nullable Tensor correctionBias,
      ExpertExchange exchange,
      @Nullable Communicator communicator,
      List<AutoCloseable> owned) {
    this.config = config;
    this.routerLora = config.lora().map(LoraConfig::router).orElse(false);
    this.backend = backend;
    this.experts = experts;
    this.block = block;
    this.expertMap = expertMap;
    this.correctionBias = correctionBias;
    this.exchange = exchange;
    this.communicator = communicator;
    this.owned = owned;
  }

  /**
   * @param owned what is closed with the parts, oldest first; closed here if something fails
   */
  static LayerParts prepare(
      MoeConfig config,
      MoeLayerWeights weights,
      BackendCatalog catalog,
      FoundBackend backend,
      Device device,
      ExpertExchangeProvider exchanges,
      @Nullable Communicator communicator,
      List<AutoCloseable> owned) {
    BlockOps block = prepareBlock(config, weights, catalog, backend, device);
    owned.add(block);
    Experts experts;
    boolean interrupted = Thread.currentThread().isInterrupted();
    try {
      experts = backend.backend().prepare(config, weights.experts(), device);
      Faults.settle();
    } catch (IllegalArgumentException e) {
      PluginFault.forgetInterrupt(interrupted, e);
      // Speaks of the weights, which are the caller's, and so stays what it is.
      throw Faults.argument(Faults.who(backend), e);
    } catch (LinkageError e) {
      PluginFault.forgetInterrupt(interrupted, e);
      throw Faults.of(Faults.who(backend), "is incomplete", e);
    } catch (Throwable e) {
      PluginFault.forgetInterrupt(interrupted, e);
      throw Faults.of(Faults.who(backend), "failed to prepare", e);
    }
    if (experts == null) { // strangers are not null-checked
      throw broken(backend, "prepare returned null");
    }
    owned.add(experts);
    if (backend.supportsLora() != (experts instanceof LoraExperts)) {
      // Rule MOE-4.1. Found out here, or an adapter would be ignored without a word.
      throw broken(
          backend,
          "supportsLora() is "
              + backend.supportsLora()
              + " but prepare made "
              + experts.getClass().getName()
              + ", which "
              + (experts instanceof LoraExperts ? "is" : "is not")
              + " LoraExperts");
    }
    if (experts instanceof MonolithicExperts
        && MonolithicExperts.isSupportedRouting(config) instanceof Support.No no) {
      throw broken(backend, "it routes by itself and did not refuse the layer: " + no);
    }
    Tensor map = null;
    if (config.expertMap().isPresent()) {
      ExpertMap m = config.expertMap().get();
      map = upload(device, Tensor.ofInts(m.toArray(), m.numGlobalExperts()), owned);
    }
    Tensor bias = null;
    if (experts instanceof MonolithicExperts && config.routing().correctionBias()) {
      bias = correctionBias(weights, backend, device, owned);
    }
    ExpertExchange exchange = exchanges.open(config, communicator, block, device);
    owned.add(exchange);
    if (experts instanceof MonolithicExperts && communicator != null && communicator.size() > 1) {
      throw new IllegalArgumentException(
          "backend "
              + backend.name()
              + " routes by itself, so its tokens cannot go to other ranks first; choose a modular"
              + " backend or leave the communicator out");
    }
    return new LayerParts(
        config, backend, experts, block, map, bias, exchange, communicator, owned);
  }

  private static BlockOps prepareBlock(
      MoeConfig config,
      MoeLayerWeights weights,
      BackendCatalog catalog,
      FoundBackend backend,
      Device device) {
    boolean interrupted = Thread.currentThread().isInterrupted();
    try {
      BlockOps block = catalog.prepareBlock(backend, config, weights, device);
      Faults.settle();
      return block;
    } catch (IllegalArgumentException | MoeException e) {
      PluginFault.forgetInterrupt(interrupted, e);
      throw e; // speaks of the weights, or of the device
    } catch (Throwable e) {
      PluginFault.forgetInterrupt(interrupted, e);
      throw Faults.of("device " + device.info().id(), "failed to prepare the block", e);
    }
  }

  private static MoeException broken(FoundBackend backend, String how) {
    return new MoeException(
        "backend " + backend.name() + " from " + backend.origin() + " broke its contract: " + how);
  }

  private static Tensor upload(Device device, Tensor from, List<AutoCloseable> owned) {
    Device.Buffer buffer = device.allocate(from.dtype().byteSize(from.elementCount()));
    owned.add(buffer);
    Tensor to = Tensor.of(from.dtype(), buffer.memory(), from.shape());
    device.copy(from, to, device.defaultStream());
    device.defaultStream().synchronize(); // the source may go away
    return to;
  }

  private static Tensor correctionBias(
      MoeLayerWeights weights, FoundBackend backend, Device device, List<AutoCloseable> owned) {
    Tensor bias = weights.router() == null ? null : weights.router().correctionBias();
    if (bias == null) {
      throw new IllegalArgumentException(
          "the routing has a correction bias, backend "
              + backend.name()
              + " routes by itself, and the weights have no router to take it from");
    }
    if (!bias.isHost()) {
      if (bias.dtype() != DType.F32 || !bias.isContiguous()) {
        throw new IllegalArgumentException(
            "router correctionBias is " + bias + " on a device, must be contiguous F32 there");
      }
      return bias;
    }
    return upload(device, Tensor.ofFloats(bias.toFloats(), bias.size(0)), owned);
  }

  /** What was decided when the parts were prepared, for people: it never fails a layer. */
  List<Fact> facts() {
    List<Fact> all = new ArrayList<>(facts(Faults.who(backend), experts::facts));
    all.addAll(facts("the block around the experts", block::facts));
    return all;
  }

  private static List<Fact> facts(String who, Supplier<List<Fact>> from) {
    try {
      List<Fact> said = List.copyOf(from.get());
      return said.subList(0, Math.min(MAX_FACTS, said.size()));
    } catch (Throwable e) { // strangers
      String why = Printable.line(PluginFault.describe(PluginFault.printable(e)));
      return List.of(Fact.of("facts", who + " does not say what it prepared: " + why));
    }
  }

  ScratchLayout layout(int capacity) {
    long forExperts = expertsWorkspace(exchange.maxRows(capacity));
    return new ScratchLayout(config, block, forExperts, exchange, isDirect(), capacity);
  }

  private long expertsWorkspace(int rows) {
    long bytes;
    try {
      bytes = experts.workspaceBytes(rows);
    } catch (Throwable e) { // strangers
      throw Faults.of(Faults.who(backend), "failed to say what scratch it needs", e);
    }
    if (bytes < 0) {
      throw broken(
          backend, "workspaceBytes(" + rows + ") is " + bytes + ", must be 0 (none) or more");
    }
    return bytes;
  }

  /** Whether the experts read and write the layer's own tensors. */
  private boolean isDirect() {
    return experts instanceof MonolithicExperts
        || (exchange instanceof LocalExchange
            && config.activationFormat() == ActivationFormat.STANDARD);
  }

  /** Whether every rank has to take part in every forward. */
  boolean isCollective() {
    return communicator != null && communicator.size() > 1;
  }

  boolean isMonolithic() {
    return experts instanceof MonolithicExperts;
  }

  void refresh(MoeLoraContext context, DeviceStream stream) {
    context.awaitFactors(stream);
    if (config.latentSize() > 0 || config.sharedExpert().isPresent() || routerLora) {
      // What stands around the experts takes its deltas from the wrapper, whatever the experts do.
      context.punicaWrapper().prepare(context, stream);
    }
    if (experts instanceof LoraExperts lora) {
      lora.refresh(context, stream);
    }
  }

  /**
   * On several ranks a forward is one piece, so that all of them make the same calls.
   *
   * @throws IllegalArgumentException before any rank is waited for
   */
  void requireOnePiece(MoeForward f, ScratchLayout layout) {
    long tokens = f.hidden().size(0);
    if (isCollective() && tokens > layout.capacity()) {
      throw new IllegalArgumentException(
          "hidden has "
              + tokens
              + " tokens, more than the "
              + layout.capacity()
              + " of one piece (maxTokens); on several ranks a forward is one piece");
    }
    if (f.rankTokens() > layout.capacity()) {
      throw new IllegalArgumentException(
          "rankTokens is "
              + f.rankTokens()
              + ", more than the "
              + layout.capacity()
              + " of one piece (maxTokens)");
    }
  }

  /** The other ranks would wait for this one until their deadline. */
  void abort(Throwable cause) {
    if (communicator != null && isCollective() && !(cause instanceof CommException)) {
      communicator.abort(cause);
    }
  }

  /** All tokens, in pieces of what the scratch holds. */
  void forward(MoeForward f, ScratchLayout layout, Scratch scratch, DeviceStream stream) {
    if (f.lora() != null) {
      f.lora().awaitFactors(stream);
    }
    long total = f.hidden().size(0);
    if (total <= layout.capacity()) {
      run(f, layout, scratch.views(layout, (int) total), stream);
      return;
    }
    for (long start = 0; start < total; start += layout.capacity()) {
      int count = (int) Math.min(layout.capacity(), total - start);
      run(f.tokens(start, count), layout, scratch.views(layout, count), stream);
    }
  }

  private void run(MoeForward f, ScratchLayout layout, ScratchLayout.Views v, DeviceStream stream) {
    Workspace workspace = v.workspace();
    // Without a token that has an adapter the base path is the whole result, unless rows of other
    // ranks come with theirs.
    MoeLoraContext given = f.lora();
    MoeLoraContext lora = given != null && (isCollective() || given.hasLora()) ? given : null;
    Tensor logits = null;
    if (f.topkIds() == null) {
      logits = f.routerLogits();
      if (logits == null) {
        logits = f.logitsOut() != null ? f.logitsOut() : v.logits();
        block.routerLogits(f.hidden(), logits, workspace, stream);
        if (lora != null && routerLora) {
          Tensor read = f.hidden();
          if (v.routerInput() != null) {
            read = v.routerInput();
            block.routerNorm(f.hidden(), read, workspace, stream);
          }
          lora.punicaWrapper()
              .addLoraLinear(
                  PunicaWrapper.Linear.of(lora, LoraTarget.ROUTER, logits, read), stream);
        }
      }
    }
    Tensor in = f.hidden();
    if (v.latent() != null) {
      in = v.latent();
      if (config.latentSize() > 0) {
        block.latentIn(f.hidden(), lora, in, workspace, stream);
      } else {
        block.inputNorm(f.hidden(), in, workspace, stream);
      }
    }
    Tensor output = f.output();
    Tensor sum = sumTarget(output, v);
    // No switch over patterns on the way of a forward: linking one takes a JVM's first forward
    // longer than a token's experts.
    if (experts instanceof ModularExperts modular) {
      if (routedInside(modular, f, logits, in, lora, sum, v, stream)) {
        finish(f, lora, sum, v, stream);
        return;
      }
      ExpertRouting chosen = route(f, logits, v, stream);
      ExpertRouting routing = chosen;
      Tensor zeroWeights = v.zeroWeights();
      if (v.expertIds() != null && zeroWeights != null) {
        routing = new ExpertRouting(v.expertIds(), chosen.topkWeights(), chosen.expertMap());
        block.splitZeroExperts(
            chosen.topkIds(), chosen.topkWeights(), v.expertIds(), zeroWeights, stream);
      }
      if (v.exchanged() != null) {
        int most = f.rankTokens() == 0 ? layout.capacity() : f.rankTokens();
        runExchanged(modular, in, routing, lora, sum, most, layout, v, stream);
      } else if (f.topkIds() == null
          && zeroWeights == null
          && !config.routing().byTokenId()
          && block.routesAlone()) {
        modular.applyRouted(ExpertsInputs.standard(in, routing, sum), lora, workspace, stream);
      } else {
        modular.apply(ExpertsInputs.standard(in, routing, sum), lora, workspace, stream);
      }
      // Where ranks share their tokens, the first adds what a token keeps of itself.
      if (zeroWeights != null && (isCollective() || config.parallel().rank() == 0)) {
        block.addZeroExperts(f.hidden(), zeroWeights, sum, stream);
      }
    } else if (experts instanceof MonolithicExperts monolithic) {
      if (f.topkIdsOut() != null) {
        route(f, logits, v, stream); // only because the caller wants to see it
      }
      monolithic.apply(
          new MonolithicInputs(in, Objects.requireNonNull(logits), correctionBias, sum),
          lora,
          workspace,
          stream);
    }
    finish(f, lora, sum, v, stream);
  }

  private void finish(
      MoeForward f,
      @Nullable MoeLoraContext lora,
      Tensor sum,
      ScratchLayout.Views v,
      DeviceStream stream) {
    if (!Objects.equals(sum, f.output()) || ScratchLayout.needsOutput(config)) {
      block.output(f.hidden(), sum, lora, f.output(), v.workspace(), stream);
    }
  }

  /** Whether the experts took the routing of this forward upon them. */
  private boolean routedInside(
      ModularExperts modular,
      MoeForward f,
      @Nullable Tensor logits,
      Tensor in,
      @Nullable MoeLoraContext lora,
      Tensor sum,
      ScratchLayout.Views v,
      DeviceStream stream) {
    if (logits == null
        || lora != null
        || v.exchanged() != null
        || v.zeroWeights() != null
        || config.routing().correctionBias()
        || config.routing().expertScale()
        || config.routing().byTokenId()) {
      return false;
    }
    return modular.routeAndApply(
        logits, ExpertsInputs.standard(in, routing(f, v), sum), v.workspace(), stream);
  }

  /** The output itself wherever what comes before and after allows it. */
  private Tensor sumTarget(Tensor output, ScratchLayout.Views v) {
    boolean sameWidth = config.latentSize() == 0;
    boolean comesSo = v.exchanged() == null || output.dtype() == exchange.outputDtype();
    boolean mustBeF32 = !comesSo || ScratchLayout.needsOutput(config) || config.zeroExperts() > 0;
    if (sameWidth && (!mustBeF32 || output.dtype() == DType.F32)) {
      return output;
    }
    return Objects.requireNonNull(v.routed());
  }

  private ExpertRouting route(
      MoeForward f, @Nullable Tensor logits, ScratchLayout.Views v, DeviceStream stream) {
    if (f.topkIds() != null && f.topkWeights() != null) {
      return new ExpertRouting(f.topkIds(), f.topkWeights(), expertMap);
    }
    ExpertRouting to = routing(f, v);
    Tensor ids = to.topkIds();
    Tensor weights = to.topkWeights();
    Tensor z = Objects.requireNonNull(logits);
    if (config.routing().byTokenId()) {
      Tensor tokens = Objects.requireNonNull(f.tokenIds());
      block.routeByTokenId(z, tokens, ids, weights, v.workspace(), stream);
    } else {
      block.route(z, ids, weights, v.workspace(), stream);
    }
    return to;
  }

  /** Where the routing of a forward goes. */
  private ExpertRouting routing(MoeForward f, ScratchLayout.Views v) {
    return new ExpertRouting(
        f.topkIdsOut() != null ? f.topkIdsOut() : v.topkIds(),
        f.topkWeightsOut() != null ? f.topkWeightsOut() : v.topkWeights(),
        expertMap);
  }

  private void runExchanged(
      ModularExperts modular,
      Tensor in,
      ExpertRouting routing,
      @Nullable MoeLoraContext lora,
      Tensor sum,
      int rankTokens,
      ScratchLayout layout,
      ScratchLayout.Views v,
      DeviceStream stream) {
    Workspace exchanged = Objects.requireNonNull(v.exchanged());
    Tensor mapping = lora == null ? null : lora.tokenLoraMapping();
    ExchangeInputs inputs = new ExchangeInputs(in, routing, mapping, rankTokens);
    ExchangedRows rows = exchange.dispatch(inputs, exchanged, stream);
    Tensor out = layout.expertsOut(v, rows.hidden().shape());
    Tensor slots = rows.loraMapping();
    modular.apply(
        rows.inputs(out),
        slots == null || lora == null ? null : lora.withTokenLoraMapping(slots),
        v.workspace(),
        stream);
    exchange.combine(out, rows, inputs, sum, exchanged, stream);
  }

  void close() {
    closeAll(owned);
  }

  /** Newest first; every one is closed even if another fails. */
  static void closeAll(List<AutoCloseable> owned) {
    RuntimeException failure = null;
    for (AutoCloseable c : new ArrayList<>(owned).reversed()) {
      try {
        c.close();
      } catch (Throwable e) {
        if (failure == null) {
          failure = e instanceof RuntimeException r ? r : new MoeException("close failed: " + e, e);
        } else {
          failure.addSuppressed(e);
        }
      }
    }
    owned.clear();
    if (failure != null) {
      throw failure;
    }
  }
}
