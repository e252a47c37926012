package io.moe4j.oracle;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.RouterWeights;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import java.util.Arrays;
import java.util.List;
import java.util.OptionalInt;
import org.jspecify.annotations.Nullable;

/** The door of a layer: after it, shapes, dtypes, memory, ids and slots are what they should be. */
final class ForwardChecks {
  private static final ValueLayout.OfInt I32 =
      ValueLayout.JAVA_INT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

  /** Stands for the worker threads of a backend; never started. */
  private static final Thread ANOTHER = Thread.ofPlatform().unstarted(() -> {});

  private static final List<DType> OUTPUT_DTYPES = List.of(DType.F32, DType.BF16, DType.F16);

  private final MoeConfig config;
  private final DeviceId device;
  private final boolean onHost;
  private final boolean hasRouter;
  private final long vocabulary;
  private final OptionalInt layerIndex;
  private final String routesByItself;

  /** What fitted last time, by slot. Immutable values, so a race costs a second check, no more. */
  private final @Nullable LoraLayer[] fitting;

  /**
   * @param router the layer's, or null
   * @param layerIndex of the layer in its model, where it is known
   * @param routesByItself name of the backend if its experts are monolithic, else empty
   */
  ForwardChecks(
      MoeConfig config,
      DeviceId device,
      @Nullable RouterWeights router,
      OptionalInt layerIndex,
      String routesByItself) {
    this.config = config;
    this.device = device;
    this.onHost = device.type().equals(DeviceType.CPU);
    this.hasRouter = router != null;
    Tensor table = router == null ? null : router.tokenExperts();
    this.vocabulary = table == null ? 0 : table.size(0);
    this.layerIndex = layerIndex;
    this.routesByItself = routesByItself;
    this.fitting = new LoraLayer[config.lora().map(l -> l.maxLoras()).orElse(0)];
  }

  void require(MoeForward f) {
    Tensor hidden = f.hidden();
    if (hidden.dims() != 2
        || hidden.size(1) != config.hiddenSize()
        || hidden.dtype() != config.inputDtype()) {
      throw new IllegalArgumentException(
          "hidden is "
              + hidden
              + ", must be "
              + config.inputDtype()
              + "[T, "
              + config.hiddenSize()
              + "]");
    }
    long t = hidden.size(0);
    requirePlace("hidden", hidden);
    if (!OUTPUT_DTYPES.contains(f.output().dtype())) {
      throw new IllegalArgumentException(
          "output is " + f.output() + ", its dtype must be one of " + OUTPUT_DTYPES);
    }
    requireTensor("output", f.output(), f.output().dtype(), t, config.hiddenSize());
    requireTensor("routerLogits", f.routerLogits(), logitsDtype(f), t, config.numChoices());
    requireTensor("topkIds", f.topkIds(), DType.I32, t, config.topK());
    requireTensor("topkWeights", f.topkWeights(), DType.F32, t, config.topK());
    requireTensor("topkIdsOut", f.topkIdsOut(), DType.I32, t, config.topK());
    requireTensor("topkWeightsOut", f.topkWeightsOut(), DType.F32, t, config.topK());
    requireTensor("logitsOut", f.logitsOut(), DType.F32, t, config.numChoices());
    requireApart(f);
    if (f.topkIds() != null) {
      if (!routesByItself.isEmpty()) {
        throw new IllegalArgumentException(
            "topkIds is given, but the experts of backend "
                + routesByItself
                + " are monolithic and route by themselves; choose a modular backend");
      }
      if (onHost) {
        requireRange("topkIds", f.topkIds(), -1, config.numChoices() - 1);
      }
    } else if (f.routerLogits() == null && !hasRouter) {
      throw new IllegalArgumentException(
          "the layer's weights have no router: give routerLogits, or topkIds and topkWeights");
    }
    requireTokenIds(f, t);
    if (f.lora() != null) {
      requireLora(f.lora(), t);
    }
  }

  private void requireTokenIds(MoeForward f, long t) {
    requireTensor("tokenIds", f.tokenIds(), DType.I32, t);
    if (!config.routing().byTokenId() || f.topkIds() != null) {
      return;
    }
    if (f.tokenIds() == null) {
      throw new IllegalArgumentException(
          "tokenIds is missing: the layer chooses experts by token id (MoeForward.withTokenIds)");
    }
    if (onHost) {
      requireRange("tokenIds", f.tokenIds(), 0, vocabulary - 1);
    }
  }

  /** Experts that route by themselves may take logits as the router's product leaves them. */
  private DType logitsDtype(MoeForward f) {
    Tensor given = f.routerLogits();
    boolean bf16 = given != null && given.dtype() == DType.BF16 && !routesByItself.isEmpty();
    return bf16 ? DType.BF16 : DType.F32;
  }

  /** A context of another layer has factors of the same shapes, and would give another model. */
  void requireLayer(MoeLoraContext context) {
    OptionalInt theirs = context.layerIndex();
    if (layerIndex.isPresent() && theirs.isPresent() && !layerIndex.equals(theirs)) {
      throw new IllegalArgumentException(
          "lora is the context of layer "
              + theirs.getAsInt()
              + ", this is layer "
              + layerIndex.getAsInt()
              + "; take batch.context("
              + layerIndex.getAsInt()
              + ")");
    }
  }

  private void requireLora(MoeLoraContext context, long t) {
    requireLayer(context);
    int slots =
        config
            .lora()
            .orElseThrow(() ->
                new IllegalArgumentException(
                    "lora is given, but the layer was built with LoRA off; set MoeConfig.lora"))
            .maxLoras();
    if (context.maxLoras() > slots) {
      throw new IllegalArgumentException(
          "lora has " + context.maxLoras() + " slots, the layer was built for " + slots);
    }
    Tensor mapping = context.tokenLoraMapping();
    requireTensor("lora.tokenLoraMapping", mapping, DType.I32, t);
    if (!context.hasLora()) {
      return;
    }
    if (onHost) {
      requireRange("lora.tokenLoraMapping", mapping, -1, context.maxLoras() - 1);
    }
    for (int slot = 0; slot < context.maxLoras(); slot++) {
      LoraLayer layer = context.slot(slot);
      if (layer != null && !isLast(layer, slot)) {
        try {
          layer.requireFits(config);
        } catch (IllegalArgumentException e) {
          throw new IllegalArgumentException("lora slot " + slot + ": " + e.getMessage(), e);
        }
        fitting[slot] = layer;
      }
    }
  }

  @SuppressWarnings("ReferenceEquality") // only the very same object is known to fit
  private boolean isLast(LoraLayer layer, int slot) {
    return fitting[slot] == layer;
  }

  private void requireTensor(String name, @Nullable Tensor t, DType dtype, long... shape) {
    if (t == null) {
      return;
    }
    if (t.dtype() != dtype || t.dims() != shape.length || !hasShape(t, shape)) {
      throw new IllegalArgumentException(
          name + " is " + t + ", must be " + dtype + Arrays.toString(shape));
    }
    requirePlace(name, t);
  }

  private static boolean hasShape(Tensor t, long[] shape) {
    for (int d = 0; d < shape.length; d++) {
      if (t.size(d) != shape[d]) {
        return false;
      }
    }
    return true;
  }

  private void requirePlace(String name, Tensor t) {
    if (!t.isContiguous()) {
      throw new IllegalArgumentException(name + " is " + t + ", must be contiguous");
    }
    boolean here =
        t.memory() instanceof DeviceMemory memory ? memory.device().equals(device) : onHost;
    if (!here) {
      throw new IllegalArgumentException(
          name
              + " is in "
              + (t.memory() instanceof DeviceMemory m ? "memory of " + m.device() : "host memory")
              + ", must be in "
              + (onHost ? "host memory" : "memory of " + device));
    }
    if (t.memory() instanceof HostMemory host) {
      requireUsable(name, t, host.segment());
    }
  }

  /** Before a worker thread finds out, or native code does not. */
  private static void requireUsable(String name, Tensor t, MemorySegment segment) {
    if (!segment.scope().isAlive()) {
      throw new IllegalArgumentException(name + " is " + t + " in memory of a closed arena");
    }
    if (!segment.isAccessibleBy(ANOTHER)) {
      throw new IllegalArgumentException(
          name
              + " is "
              + t
              + " in memory of a confined arena, which a backend's threads cannot use; take"
              + " Arena.ofShared or ofAuto");
    }
  }

  private static void requireRange(String name, Tensor t, int first, long last) {
    MemorySegment values = t.segment();
    long count = t.elementCount();
    for (long i = 0; i < count; i++) {
      int value = values.get(I32, i * Integer.BYTES);
      if (value < first || value > last) {
        long width = t.dims() == 1 ? 1 : t.size(1);
        throw new IllegalArgumentException(
            name
                + "["
                + i / width
                + (t.dims() == 1 ? "" : ", " + i % width)
                + "] is "
                + value
                + ", must be "
                + first
                + ".."
                + last);
      }
    }
  }

  private static void requireApart(MoeForward f) {
    requireApart("output", f.output(), f);
    requireApart("topkIdsOut", f.topkIdsOut(), f);
    requireApart("topkWeightsOut", f.topkWeightsOut(), f);
    requireApart("logitsOut", f.logitsOut(), f);
  }

  private static void requireApart(String name, @Nullable Tensor out, MoeForward f) {
    if (out == null) {
      return;
    }
    if (out.memory() instanceof HostMemory host && host.segment().isReadOnly()) {
      throw new IllegalArgumentException(name + " is " + out + " in read-only memory");
    }
    requireApart(name, out, "hidden", f.hidden());
    requireApart(name, out, "routerLogits", f.routerLogits());
    requireApart(name, out, "topkIds", f.topkIds());
    requireApart(name, out, "tokenIds", f.tokenIds());
    requireApart(name, out, "topkWeights", f.topkWeights());
    requireApart(name, out, "output", f.output());
    requireApart(name, out, "topkIdsOut", f.topkIdsOut());
    requireApart(name, out, "topkWeightsOut", f.topkWeightsOut());
    requireApart(name, out, "logitsOut", f.logitsOut());
    if (f.lora() != null) {
      requireApart(name, out, "lora.tokenLoraMapping", f.lora().tokenLoraMapping());
    }
  }

  private static void requireApart(String a, Tensor ta, String b, @Nullable Tensor tb) {
    if (tb != null && !a.equals(b) && overlap(ta, tb)) {
      throw new IllegalArgumentException(a + " overlaps " + b + ", they must be apart");
    }
  }

  /** Whether two tensors, both contiguous, share a byte. */
  @SuppressWarnings("ReferenceEquality") // the very same array
  private static boolean overlap(Tensor a, Tensor b) {
    long sizeA = a.dtype().byteSize(a.elementCount());
    long sizeB = b.dtype().byteSize(b.elementCount());
    long startA;
    long startB;
    if (a.memory() instanceof DeviceMemory da && b.memory() instanceof DeviceMemory db) {
      if (!da.device().equals(db.device())) {
        return false;
      }
      startA = a.deviceAddress();
      startB = b.deviceAddress();
    } else if (a.memory() instanceof HostMemory ha && b.memory() instanceof HostMemory hb) {
      if (ha.segment().isReadOnly() || hb.segment().isReadOnly()) {
        // Such a segment does not tell which array it is of.
        return a.segment().asOverlappingSlice(b.segment()).isPresent();
      }
      Object baseA = ha.segment().heapBase().orElse(null);
      Object baseB = hb.segment().heapBase().orElse(null);
      if (baseA != baseB) {
        return false;
      }
      startA = ha.segment().address() + a.byteOffset();
      startB = hb.segment().address() + b.byteOffset();
    } else {
      return false;
    }
    // Differences, because device addresses are unsigned.
    return sizeA > 0
        && sizeB > 0
        && (Long.compareUnsigned(startB - startA, sizeA) < 0
            || Long.compareUnsigned(startA - startB, sizeB) < 0);
  }
}
