package io.moe4j.cuda;

import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.config.Activation;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.SharedExpertConfig;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.RouterWeights;
import io.moe4j.api.weights.SharedExpertWeights;
import io.moe4j.api.weights.Weight;
import java.util.Optional;
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
      sharedGate = gate == null ? null : weights.dense(gate.plain());
      sharedUp = weights.dense(s.mlp().up().plain());
      sharedDown = weights.dense(s.mlp().down().plain());
      sharedGateBias = weights.floats(s.mlp().gateBias());
      sharedUpBias = weights.floats(s.mlp().upBias());
      sharedDownBias = weights.floats(s.mlp().downBias());
      sharedSigmoid = s.sigmoidGate() == null ? null : weights.dense(s.sigmoidGate());
    }
  }

  // ---------------------------------------------------------------------------------- scratch

  /** Hands out parts of the workspace one after the other; without memory it only measures. */
  private static final class Parts {
    private final @Nullable Workspace workspace;
    private long end;

    Parts(@Nullable Workspace workspace) {
      this.workspace = workspace;
    }

    @Nullable Tensor next(DType dtype, long rows, long columns) {
      long at = end;
      end += Workspace.align(dtype.byteSize(rows * columns));
      return workspace == null ? null : workspace.tensor(at, dtype, rows, columns);
    }
  }

  /** What {@link #finish} keeps between its products; null where the block has no such part. */
  private record FinishParts(
      @Nullable Tensor narrowed,
      @Nullable Tensor routed,
      @Nullable Tensor gate,
      @Nullable Tensor up,
      @Nullable Tensor activated,
      @Nullable Tensor shared,
      @Nullable Tensor sigmoid) {}

  private FinishParts finishParts(Parts parts, long tokens, DType hidden) {
    int h = config.hiddenSize();
    int d = config.latentSize();
    int i = config.sharedExpert().map(SharedExpertConfig::intermediateSize).orElse(0);
    boolean latent = latentOut != null;
    boolean hasShared = sharedUp != null;
    return new FinishParts(
        latent ? parts.next(between(latentOut, hidden), tokens, d) : null,
        latent ? parts.next(DType.F32, tokens, h) : null,
        hasShared && sharedGate != null ? parts.next(DType.F32, tokens, i) : null,
        hasShared ? parts.next(DType.F32, tokens, i) : null,
        hasShared ? parts.next(between(sharedDown, hidden), tokens, i) : null,
        hasShared ? parts.next(DType.F32, tokens, h) : null,
        hasShared && sharedSigmoid != null ? parts.next(DType.F32, tokens, 1) : null);
  }

  /** The type of what a product with {@code weight} reads in the middle of the block. */
  private static DType between(@Nullable Tensor weight, DType hidden) {
    return weight != null && weight.dtype() == hidden ? hidden : DType.F32;
  }

  @Override
  public long workspaceBytes(int maxTokens) {
    Parts parts = new Parts(null);
    // F32 is the widest that anything in between can be.
    finishParts(parts, maxTokens, DType.F32);
    return Math.max(parts.end, sortLayout((long) maxTokens * config.topK()).byteSize());
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

  @Override
  public void latentIn(
      Tensor hidden,
      Optional<MoeLoraContext> lora,
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
      Optional<MoeLoraContext> lora,
      Tensor y,
      DeviceStream stream) {
    gemm.run(x, w, bias, y, stream);
    if (lora.isPresent() && lora.get().hasLora()) {
      lora.get().punicaWrapper().addLoraLinear(PunicaWrapper.Linear.of(lora.get(), target, y, x), stream);
    }
  }

  @Override
  public void finish(
      Tensor hidden,
      Tensor routed,
      Optional<MoeLoraContext> lora,
      Tensor output,
      Workspace workspace,
      DeviceStream stream) {
    if (hidden.size(0) == 0) {
      return;
    }
    FinishParts parts = finishParts(new Parts(workspace), hidden.size(0), hidden.dtype());
    Tensor sum = routed;
    Tensor out = latentOut;
    if (out != null && parts.narrowed != null && parts.routed != null) {
      Tensor x = routed;
      if (parts.narrowed.dtype() != routed.dtype()) {
        elementwise.cast(routed, parts.narrowed, stream);
        x = parts.narrowed;
      }
      linear(x, out, null, LoraTarget.LATENT_OUT, lora, parts.routed, stream);
      sum = parts.routed;
    }
    if (sharedUp != null
        && sharedDown != null
        && parts.up != null
        && parts.activated != null
        && parts.shared != null) {
      Activation activation = config.sharedExpert().orElseThrow().activation();
      if (sharedGate != null && parts.gate != null) {
        linear(
            hidden, sharedGate, sharedGateBias, LoraTarget.SHARED_GATE, lora, parts.gate, stream);
      }
      linear(hidden, sharedUp, sharedUpBias, LoraTarget.SHARED_UP, lora, parts.up, stream);
      elementwise.activation(activation, parts.gate, parts.up, parts.activated, stream);
      linear(
          parts.activated,
          sharedDown,
          sharedDownBias,
          LoraTarget.SHARED_DOWN,
          lora,
          parts.shared,
          stream);
      if (sharedSigmoid != null && parts.sigmoid != null) {
        linear(
            hidden,
            sharedSigmoid,
            null,
            LoraTarget.SHARED_EXPERT_GATE,
            lora,
            parts.sigmoid,
            stream);
      }
    }
    elementwise.finish(sum, parts.shared, parts.sigmoid, output, stream);
  }

  @Override
  public void dispatch(
      Tensor hidden,
      ExpertRouting routing,
      Optional<Tensor> tokenLoraMapping,
      Tensor batched,
      Tensor expertNumTokens,
      Optional<Tensor> batchedLoraMapping,
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
        batchedLoraMapping.isPresent() ? tokenLoraMapping.orElse(null) : null,
        at + layout.rowOfPair(),
        at + layout.off(),
        batched,
        expertNumTokens,
        batchedLoraMapping.orElse(null),
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
