package io.moe4j.cuda.ops;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.SharedExpertConfig;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.device.WorkspaceLayout;
import io.moe4j.api.device.WorkspaceLayout.Part;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.RouterWeights;
import io.moe4j.api.weights.SharedExpertWeights;
import io.moe4j.api.weights.Weight;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.DeviceWeights;
import org.jspecify.annotations.Nullable;

/**
 * Router, topk, latent projections, shared expert, dispatch and combine on a CUDA device. Enqueues
 * and returns: no call allocates, synchronises or reads back, so all of it can be captured.
 *
 * <p>Products accumulate in f32. Where hidden states and a weight share a 16-bit type, what lies
 * between two products is rounded to it (as the model's authors do) and the tensor cores work;
 * otherwise everything stays f32.
 */
final class CudaBlockOps implements BlockOps {
  /** Dispatch and combine only need the order; long tiles keep the lists nobody reads short. */
  private static final int TILE_ROWS = 1024;

  private final CudaDevice device;
  private final MoeConfig config;
  private final DeviceWeights weights;
  private final DenseGemm gemm;
  private final ElementwiseKernels elementwise;
  private final TopkKernel topk;
  private final PairSort sort;

  private @Nullable Tensor router;
  private @Nullable Tensor routerBias;
  private @Nullable Tensor correctionBias;
  private @Nullable Tensor latentIn;
  private @Nullable Tensor latentOut;
  private @Nullable Tensor sharedGate;
  private @Nullable Tensor sharedUp;
  private @Nullable Tensor sharedDown;
  private @Nullable Tensor sharedGateBias;
  private @Nullable Tensor sharedUpBias;
  private @Nullable Tensor sharedDownBias;
  private @Nullable Tensor sharedSigmoid;

  private CudaBlockOps(CudaDevice device, MoeConfig config) {
    this.device = device;
    this.config = config;
    this.weights = new DeviceWeights(device);
    this.gemm = new DenseGemm(device);
    this.elementwise = new ElementwiseKernels(device);
    this.topk = new TopkKernel(device, config.routing(), config.numExperts(), config.topK());
    this.sort = new PairSort(device, 0);
  }

  static CudaBlockOps prepare(CudaDevice device, MoeConfig config, MoeLayerWeights w) {
    CudaBlockOps ops = new CudaBlockOps(device, config);
    try {
      ops.upload(w);
      return ops;
    } catch (RuntimeException | Error e) {
      ops.close();
      throw e;
    }
  }

  private void upload(MoeLayerWeights w) {
    RouterWeights r = w.router();
    if (r != null) {
      router = weights.dense(r.weight());
      routerBias = weights.floats(r.bias());
      correctionBias = weights.floats(r.correctionBias());
    }
    if (w.latent() != null) {
      latentIn = weights.dense(w.latent().in());
      latentOut = weights.dense(w.latent().out());
    }
    SharedExpertWeights s = w.shared();
    if (s != null) {
      Weight gate = s.mlp().gate();
      sharedGate = gate == null ? null : weights.dense(plain(gate));
      sharedUp = weights.dense(plain(s.mlp().up()));
      sharedDown = weights.dense(plain(s.mlp().down()));
      sharedGateBias = weights.floats(s.mlp().gateBias());
      sharedUpBias = weights.floats(s.mlp().upBias());
      sharedDownBias = weights.floats(s.mlp().downBias());
      sharedSigmoid = s.sigmoidGate() == null ? null : weights.dense(s.sigmoidGate());
    }
  }

  /**
   * The shared expert is a small part of a layer: what is quantised of it is unpacked to the hidden
   * states' dtype.
   */
  private Tensor plain(Weight weight) {
    return (weight.isPlain() ? weight : weight.toPlain(config.inputDtype())).plain();
  }

  // ---------------------------------------------------------------------------------- scratch

  /** What {@link #output} keeps between its products; null where the block has no such part. */
  private record OutputParts(
      @Nullable Part narrowed,
      @Nullable Part routed,
      @Nullable Part gate,
      @Nullable Part up,
      @Nullable Part activated,
      @Nullable Part shared,
      @Nullable Part sigmoid) {}

  private OutputParts outputParts(WorkspaceLayout layout, long tokens, DType hidden) {
    int h = config.hiddenSize();
    int d = config.latentSize();
    int i = config.sharedExpert().map(SharedExpertConfig::intermediateSize).orElse(0);
    boolean latent = latentOut != null;
    boolean hasShared = sharedUp != null;
    return new OutputParts(
        latent ? layout.reserve(between(latentOut, hidden), tokens, d) : null,
        latent ? layout.reserve(DType.F32, tokens, h) : null,
        hasShared && sharedGate != null ? layout.reserve(DType.F32, tokens, i) : null,
        hasShared ? layout.reserve(DType.F32, tokens, i) : null,
        hasShared ? layout.reserve(between(sharedDown, hidden), tokens, i) : null,
        hasShared ? layout.reserve(DType.F32, tokens, h) : null,
        hasShared && sharedSigmoid != null ? layout.reserve(DType.F32, tokens, 1) : null);
  }

  /** The type of what a product with {@code weight} reads in the middle of the block. */
  private static DType between(@Nullable Tensor weight, DType hidden) {
    return weight != null && weight.dtype() == hidden ? hidden : DType.F32;
  }

  @Override
  public long workspaceBytes(int maxTokens) {
    WorkspaceLayout layout = new WorkspaceLayout();
    // F32 is the widest that anything in between can be.
    outputParts(layout, maxTokens, DType.F32);
    return Math.max(layout.byteSize(), sortLayout((long) maxTokens * config.topK()).byteSize());
  }

  private PairSort.Layout sortLayout(long pairs) {
    return PairSort.Layout.of(
        SharedKernels.size("P", pairs), config.numLocalExperts(), 0, TILE_ROWS, TILE_ROWS);
  }

  private static long address(Workspace workspace, long needed) {
    if (!(workspace.memory() instanceof DeviceMemory m) || m.byteSize() < needed) {
      throw new IllegalArgumentException(
          "workspace is "
              + workspace.memory()
              + ", must be device memory of at least "
              + needed
              + " bytes");
    }
    return m.address();
  }

  // ---------------------------------------------------------------------------------- operations

  @Override
  public void routerLogits(Tensor hidden, Tensor logits, Workspace workspace, DeviceStream stream) {
    Tensor w = router;
    if (w == null) {
      throw new IllegalStateException("the weights came without a router");
    }
    gemm.run(hidden, w, routerBias, logits, stream);
  }

  @Override
  public void route(
      Tensor logits, Tensor topkIds, Tensor topkWeights, Workspace workspace, DeviceStream stream) {
    topk.run(logits, correctionBias, topkIds, topkWeights, stream);
  }

  /** One kernel, which waits before anything else (see {@code routing.cu}). */
  @Override
  public boolean routesAlone() {
    return true;
  }

  @Override
  public void latentIn(
      Tensor hidden,
      @Nullable MoeLoraContext lora,
      Tensor latent,
      Workspace workspace,
      DeviceStream stream) {
    Tensor w = latentIn;
    if (w == null) {
      throw new IllegalStateException("the layer has no latent projections (latentSize is 0)");
    }
    linear(hidden, w, null, LoraTarget.LATENT_IN, lora, latent, stream);
  }

  private void linear(
      Tensor x,
      Tensor w,
      @Nullable Tensor bias,
      LoraTarget target,
      @Nullable MoeLoraContext lora,
      Tensor y,
      DeviceStream stream) {
    gemm.run(x, w, bias, y, stream);
    if (lora != null && lora.hasLora()) {
      lora.punicaWrapper().addLoraLinear(PunicaWrapper.Linear.of(lora, target, y, x), stream);
    }
  }

  @Override
  public void output(
      Tensor hidden,
      Tensor routed,
      @Nullable MoeLoraContext lora,
      Tensor output,
      Workspace workspace,
      DeviceStream stream) {
    if (hidden.size(0) == 0) {
      return;
    }
    OutputParts parts = outputParts(new WorkspaceLayout(), hidden.size(0), hidden.dtype());
    Tensor sum = routed;
    if (latentOut != null && parts.narrowed != null && parts.routed != null) {
      Tensor x = parts.narrowed.in(workspace);
      if (x.dtype() == routed.dtype()) {
        x = routed;
      } else {
        elementwise.cast(routed, x, stream);
      }
      sum = parts.routed.in(workspace);
      linear(x, latentOut, null, LoraTarget.LATENT_OUT, lora, sum, stream);
    }
    Tensor shared = null;
    Tensor sigmoid = null;
    if (sharedUp != null
        && sharedDown != null
        && parts.up != null
        && parts.activated != null
        && parts.shared != null) {
      Activation activation = config.sharedExpert().orElseThrow().activation();
      Tensor gate = null;
      if (sharedGate != null && parts.gate != null) {
        gate = parts.gate.in(workspace);
        linear(hidden, sharedGate, sharedGateBias, LoraTarget.SHARED_GATE, lora, gate, stream);
      }
      Tensor up = parts.up.in(workspace);
      linear(hidden, sharedUp, sharedUpBias, LoraTarget.SHARED_UP, lora, up, stream);
      Tensor activated = parts.activated.in(workspace);
      elementwise.activation(activation, gate, up, activated, stream);
      shared = parts.shared.in(workspace);
      linear(activated, sharedDown, sharedDownBias, LoraTarget.SHARED_DOWN, lora, shared, stream);
      if (sharedSigmoid != null && parts.sigmoid != null) {
        sigmoid = parts.sigmoid.in(workspace);
        linear(hidden, sharedSigmoid, null, LoraTarget.SHARED_EXPERT_GATE, lora, sigmoid, stream);
      }
    }
    elementwise.addShared(sum, shared, sigmoid, output, stream);
  }

  @Override
  public void dispatch(
      Tensor hidden,
      ExpertRouting routing,
      @Nullable Tensor tokenLoraMapping,
      Tensor batched,
      Tensor expertNumTokens,
      @Nullable Tensor batchedLoraMapping,
      Workspace workspace,
      DeviceStream stream) {
    if (hidden.size(0) == 0) {
      device.fill(expertNumTokens, 0, stream);
      return;
    }
    PairSort.Layout layout = sortLayout(routing.topkIds().elementCount());
    long at = address(workspace, layout.byteSize());
    sort.run(routing, null, null, layout, at, stream);
    elementwise.dispatch(
        hidden,
        routing,
        config.routerWeightOnInput(),
        batchedLoraMapping == null ? null : tokenLoraMapping,
        at + layout.rowOfPair(),
        at + layout.off(),
        batched,
        expertNumTokens,
        batchedLoraMapping,
        stream);
  }

  @Override
  public void combine(
      Tensor batched,
      ExpertRouting routing,
      Tensor routed,
      Workspace workspace,
      DeviceStream stream) {
    PairSort.Layout layout = sortLayout(routing.topkIds().elementCount());
    long at = address(workspace, layout.byteSize());
    sort.run(routing, null, null, layout, at, stream);
    elementwise.combine(
        batched,
        routing,
        !config.routerWeightOnInput(),
        at + layout.rowOfPair(),
        at + layout.off(),
        config.numLocalExperts(),
        SharedKernels.size("maxTokens", batched.size(1)),
        routed,
        stream);
  }

  @Override
  public void close() {
    weights.close();
  }
}
