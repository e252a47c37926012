package io.moe4j.oracle;

import io.moe4j.api.MoeException;
import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.spi.Experts;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.spi.LoraExperts;
import io.moe4j.api.spi.ModularExperts;
import io.moe4j.api.spi.MonolithicExperts;
import io.moe4j.api.spi.MonolithicInputs;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.MoeLayerWeights;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import java.util.Optional;
import org.jspecify.annotations.Nullable;

/**
 * The prepared parts of a layer, and the order in which they run. Stateless once built: everything
 * that changes is in the request and the scratch.
 */
final class LayerParts {
  private final MoeConfig config;
  private final Experts experts;
  private final BlockOps block;
  private final @Nullable Tensor expertMap;
  private final @Nullable Tensor correctionBias;

  /** What was opened, in that order. */
  private final List<AutoCloseable> owned;

  private LayerParts(
      MoeConfig config,
      Experts experts,
      BlockOps block,
      @Nullable Tensor expertMap,
      @Nullable Tensor correctionBias,
      List<AutoCloseable> owned) {
    this.config = config;
    this.experts = experts;
    this.block = block;
    this.expertMap = expertMap;
    this.correctionBias = correctionBias;
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
      List<AutoCloseable> owned) {
    BlockOps block = catalog.prepareBlock(backend, config, weights, device);
    owned.add(block);
    Experts experts;
    try {
      experts = backend.backend().prepare(config, weights.experts(), device);
    } catch (LinkageError e) {
      throw new MoeException(
          "backend " + backend.name() + " from " + backend.origin() + " is incomplete: " + e, e);
    } catch (MoeException | IllegalArgumentException e) {
      throw e; // speaks for itself
    } catch (RuntimeException e) {
      throw new MoeException(
          "backend " + backend.name() + " from " + backend.origin() + " failed to prepare: " + e,
          e);
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
    Tensor map = null;
    if (config.expertMap().isPresent()) {
      ExpertMap m = config.expertMap().get();
      map = upload(device, Tensor.ofInts(m.toArray(), m.numGlobalExperts()), owned);
    }
    Tensor bias = null;
    if (experts instanceof MonolithicExperts && config.routing().correctionBias()) {
      bias = correctionBias(weights, backend, device, owned);
    }
    return new LayerParts(config, experts, block, map, bias, owned);
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

  ScratchLayout layout(int capacity) {
    return new ScratchLayout(config, block, experts, capacity);
  }

  boolean isMonolithic() {
    return experts instanceof MonolithicExperts;
  }

  void refresh(MoeLoraContext context, DeviceStream stream) {
    context.awaitFactors(stream);
    if (config.latentSize() > 0 || config.sharedExpert().isPresent()) {
      // What stands around the experts takes its deltas from the wrapper, whatever the experts do.
      context.punicaWrapper().prepare(context, stream);
    }
    if (experts instanceof LoraExperts lora) {
      lora.refresh(context, stream);
    }
  }

  /** All tokens, in pieces of what the scratch holds. */
  void forward(MoeForward f, ScratchLayout layout, Scratch scratch, DeviceStream stream) {
    if (f.lora() != null) {
      f.lora().awaitFactors(stream);
    }
    long total = f.hidden().size(0);
    if (total <= layout.capacity()) {
      run(f, scratch.views(layout, (int) total), stream);
      return;
    }
    for (long start = 0; start < total; start += layout.capacity()) {
      int count = (int) Math.min(layout.capacity(), total - start);
      run(f.tokens(start, count), scratch.views(layout, count), stream);
    }
  }

  private void run(MoeForward f, ScratchLayout.Views v, DeviceStream stream) {
    Workspace workspace = v.workspace();
    // Without a token that has an adapter the base path is the whole result.
    Optional<MoeLoraContext> lora = Optional.ofNullable(f.lora()).filter(MoeLoraContext::hasLora);
    Tensor logits = null;
    if (f.topkIds() == null) {
      logits = f.routerLogits();
      if (logits == null) {
        logits = f.logitsOut() != null ? f.logitsOut() : v.logits();
        block.routerLogits(f.hidden(), logits, workspace, stream);
      }
    }
    Tensor in = f.hidden();
    if (v.latent() != null) {
      in = v.latent();
      block.latentIn(f.hidden(), lora, in, workspace, stream);
    }
    Tensor output = f.output();
    Tensor sum = sumTarget(output, v);
    switch (experts) {
      case ModularExperts modular -> {
        ExpertRouting routing = route(f, logits, v, stream);
        if (v.batch() != null) {
          runBatched(modular, in, routing, lora, sum, v, stream);
        } else {
          modular.apply(ExpertsInputs.standard(in, routing, sum), lora, workspace, stream);
        }
      }
      case MonolithicExperts monolithic -> {
        if (f.topkIdsOut() != null) {
          route(f, logits, v, stream); // only because the caller wants to see it
        }
        monolithic.apply(
            new MonolithicInputs(in, Objects.requireNonNull(logits), correctionBias, sum),
            lora,
            workspace,
            stream);
      }
    }
    if (!Objects.equals(sum, output) || ScratchLayout.needsFinish(config)) {
      block.finish(f.hidden(), sum, lora, output, workspace, stream);
    }
  }

  /** The output itself wherever what comes after the experts allows it. */
  private Tensor sumTarget(Tensor output, ScratchLayout.Views v) {
    boolean sameWidth = config.latentSize() == 0;
    boolean mustBeF32 = v.batch() != null || ScratchLayout.needsFinish(config);
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
    Tensor ids = f.topkIdsOut() != null ? f.topkIdsOut() : v.topkIds();
    Tensor weights = f.topkWeightsOut() != null ? f.topkWeightsOut() : v.topkWeights();
    block.route(Objects.requireNonNull(logits), ids, weights, v.workspace(), stream);
    return new ExpertRouting(ids, weights, expertMap);
  }

  private void runBatched(
      ModularExperts modular,
      Tensor in,
      ExpertRouting routing,
      Optional<MoeLoraContext> lora,
      Tensor sum,
      ScratchLayout.Views v,
      DeviceStream stream) {
    ScratchLayout.Batch b = Objects.requireNonNull(v.batch());
    Optional<Tensor> batchedMapping = lora.isPresent() ? Optional.of(mapping(b)) : Optional.empty();
    block.dispatch(
        in,
        routing,
        lora.map(MoeLoraContext::tokenLoraMapping),
        b.in(),
        b.counts(),
        batchedMapping,
        v.workspace(),
        stream);
    modular.apply(
        ExpertsInputs.batched(b.in(), b.counts(), b.out()),
        lora.map(l -> l.withTokenLoraMapping(mapping(b))),
        v.workspace(),
        stream);
    block.combine(b.out(), routing, sum, v.workspace(), stream);
  }

  private static Tensor mapping(ScratchLayout.Batch b) {
    return Objects.requireNonNull(b.loraMapping());
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
      } catch (Exception e) {
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
