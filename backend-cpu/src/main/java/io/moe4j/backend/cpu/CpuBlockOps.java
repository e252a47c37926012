package io.moe4j.backend.cpu;

import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.SharedExpertConfig;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.LatentWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.RouterWeights;
import io.moe4j.api.weights.SharedExpertWeights;
import io.moe4j.backend.cpu.kernel.Kernels;
import io.moe4j.backend.cpu.kernel.TypedKernels;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.List;
import java.util.Optional;
import java.util.concurrent.ConcurrentLinkedQueue;
import org.jspecify.annotations.Nullable;

/** Router, topk, latent projections, shared expert, dispatch and combine on the host. */
final class CpuBlockOps implements BlockOps {
  private static final ValueLayout.OfFloat F32 = ValueLayout.JAVA_FLOAT_UNALIGNED;
  private static final ValueLayout.OfInt I32 = ValueLayout.JAVA_INT_UNALIGNED;

  private final MoeConfig config;
  private final Kernels kernels;
  private final Arena arena = Arena.ofShared();
  private final @Nullable DenseLayer router;
  private final float[] correctionBias;
  private final @Nullable DenseLayer latentIn;
  private final @Nullable DenseLayer latentOut;
  private final @Nullable GroupedMlp shared;
  private final @Nullable DenseLayer sharedGate;
  private final ConcurrentLinkedQueue<Router> routers = new ConcurrentLinkedQueue<>();

  CpuBlockOps(MoeConfig config, MoeLayerWeights weights, Kernels kernels, ThreadTeam team) {
    this.config = config;
    this.kernels = kernels;
    int loras = config.lora().map(LoraConfig::maxLoras).orElse(0);
    int rank = config.lora().map(LoraConfig::maxRank).orElse(0);
    RouterWeights r = weights.router();
    router =
        r == null ? null : new DenseLayer(r.weight(), r.bias(), arena, kernels, team, null, 0, 0);
    Tensor bias = r == null ? null : r.correctionBias();
    correctionBias = bias == null ? new float[0] : bias.toFloats();
    LatentWeights l = weights.latent();
    latentIn = l == null ? null : dense(l.in(), LoraTarget.LATENT_IN, team, loras, rank);
    latentOut = l == null ? null : dense(l.out(), LoraTarget.LATENT_OUT, team, loras, rank);
    SharedExpertWeights s = weights.shared();
    SharedExpertConfig c = config.sharedExpert().orElse(null);
    if (s == null || c == null) {
      shared = null;
      sharedGate = null;
    } else {
      shared =
          new GroupedMlp(
              new MlpSpec(
                  new MlpWeights(c.activation(), List.of(s.mlp()), arena, true),
                  kernels,
                  team,
                  1,
                  false,
                  loras,
                  rank,
                  config.batchInvariant()));
      Tensor gate = s.sigmoidGate();
      sharedGate =
          gate == null ? null : dense(gate, LoraTarget.SHARED_EXPERT_GATE, team, loras, rank);
    }
  }

  private DenseLayer dense(Tensor w, LoraTarget target, ThreadTeam team, int loras, int rank) {
    return new DenseLayer(w, null, arena, kernels, team, target, loras, rank);
  }

  @Override
  public long workspaceBytes(int maxTokens) {
    return scratchOffset(maxTokens) + scratchBytes(maxTokens);
  }

  /** In front of everything else: the sum, the shared expert's output, its gate. */
  private long scratchOffset(int tokens) {
    return 2 * accumulatorBytes(tokens) + Workspace.align(4L * tokens);
  }

  private long accumulatorBytes(int tokens) {
    return Workspace.align(4L * tokens * config.hiddenSize());
  }

  private long scratchBytes(int tokens) {
    long most = 0;
    for (DenseLayer d : new DenseLayer[] {router, latentIn, latentOut, sharedGate}) {
      most = d == null ? most : Math.max(most, d.workspaceBytes(tokens));
    }
    return shared == null ? most : Math.max(most, shared.workspaceBytes(tokens));
  }

  private MemorySegment memory(Workspace workspace, int tokens) {
    return CpuExperts.memory(workspace, workspaceBytes(tokens));
  }

  @Override
  public void routerLogits(Tensor hidden, Tensor logits, Workspace workspace, DeviceStream stream) {
    if (router == null) {
      throw new IllegalStateException("the weights came without a router");
    }
    int tokens = Math.toIntExact(hidden.size(0));
    MemorySegment ws = memory(workspace, tokens);
    router.run(
        hidden.segment(),
        Rows.requireFloat("hidden", hidden),
        tokens,
        null,
        logits.segment(),
        0,
        ws,
        scratchOffset(tokens));
  }

  @Override
  public void route(
      Tensor logits, Tensor topkIds, Tensor topkWeights, Workspace workspace, DeviceStream stream) {
    Router r = routers.poll();
    if (r == null) {
      r = new Router(config.routing(), config.numExperts(), config.topK());
    }
    MemorySegment from = logits.segment();
    MemorySegment ids = topkIds.segment();
    MemorySegment weights = topkWeights.segment();
    long tokens = logits.size(0);
    for (long t = 0; t < tokens; t++) {
      r.route(from, correctionBias, t, ids, weights);
    }
    routers.add(r);
  }

  @Override
  public void latentIn(
      Tensor hidden,
      Optional<MoeLoraContext> lora,
      Tensor latent,
      Workspace workspace,
      DeviceStream stream) {
    if (latentIn == null) {
      throw new IllegalStateException("the layer has no latent projections");
    }
    int tokens = Math.toIntExact(hidden.size(0));
    latentIn.run(
        hidden.segment(),
        Rows.requireFloat("hidden", hidden),
        tokens,
        lora.orElse(null),
        latent.segment(),
        0,
        memory(workspace, tokens),
        scratchOffset(tokens));
  }

  @Override
  public void finish(
      Tensor hidden,
      Tensor routed,
      Optional<MoeLoraContext> lora,
      Tensor output,
      Workspace workspace,
      DeviceStream stream) {
    int tokens = Math.toIntExact(hidden.size(0));
    int h = config.hiddenSize();
    MemorySegment ws = memory(workspace, tokens);
    long scratch = scratchOffset(tokens);
    long sharedOut = accumulatorBytes(tokens);
    long gate = 2 * accumulatorBytes(tokens);
    MoeLoraContext context = lora.orElse(null);
    DType type = Rows.requireFloat("hidden", hidden);
    if (latentOut != null) {
      latentOut.run(routed.segment(), DType.F32, tokens, context, ws, 0, ws, scratch);
    } else {
      MemorySegment.copy(routed.segment(), 0, ws, 0, 4L * tokens * h);
    }
    if (shared != null) {
      shared.run(
          new MlpCall(
              hidden.segment(),
              type,
              tokens,
              1,
              null,
              null,
              null,
              context,
              ws.asSlice(sharedOut, accumulatorBytes(tokens)),
              DType.F32),
          ws.asSlice(scratch));
      if (sharedGate != null) {
        sharedGate.run(hidden.segment(), type, tokens, context, ws, gate, ws, scratch);
      }
      TypedKernels f32 = kernels.forType(DType.F32);
      for (int t = 0; t < tokens; t++) {
        float g = 1f;
        if (sharedGate != null) {
          g = (float) (1 / (1 + Math.exp(-(double) ws.get(F32, gate + 4L * t))));
        }
        f32.axpy(g, ws, sharedOut + 4L * t * h, ws, 4L * t * h, h);
      }
    }
    DType outType = Rows.requireFloat("output", output);
    MemorySegment out = output.segment();
    for (int t = 0; t < tokens; t++) {
      MlpForward.store(ws, 4L * t * h, out, outType, (long) t * h, h);
    }
  }

  private int local(ExpertRouting routing, int id) {
    Tensor map = routing.expertMap();
    if (map != null) {
      id = id >= 0 && id < map.size(0) ? map.segment().getAtIndex(I32, id) : -1;
    }
    return id >= 0 && id < config.numLocalExperts() ? id : -1;
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
    MemorySegment counts = expertNumTokens.segment();
    counts.fill((byte) 0);
    MemorySegment ids = routing.topkIds().segment();
    int k = Math.toIntExact(routing.topkIds().size(1));
    long capacity = batched.size(1);
    int width = Math.toIntExact(hidden.size(1));
    long rowBytes = hidden.dtype().byteSize(width);
    long pairs = hidden.size(0) * k;
    for (long p = 0; p < pairs; p++) {
      int e = local(routing, ids.getAtIndex(I32, p));
      if (e < 0) {
        continue;
      }
      int row = counts.getAtIndex(I32, e);
      if (row >= capacity) {
        throw new IllegalArgumentException(
            "expert " + e + " has more than the " + capacity + " rows of batched " + batched);
      }
      counts.setAtIndex(I32, e, row + 1);
      long at = e * capacity + row;
      long t = p / k;
      if (config.routerWeightOnInput()) {
        float w = routing.topkWeights().segment().getAtIndex(F32, p);
        for (int i = 0; i < width; i++) {
          batched.set((float) hidden.get(t, i) * w, e, row, i);
        }
      } else {
        MemorySegment.copy(
            hidden.segment(), t * rowBytes, batched.segment(), at * rowBytes, rowBytes);
      }
      if (tokenLoraMapping.isPresent() && batchedLoraMapping.isPresent()) {
        int slot = tokenLoraMapping.get().segment().getAtIndex(I32, t);
        batchedLoraMapping.get().segment().setAtIndex(I32, at, slot);
      }
    }
  }

  @Override
  public void combine(
      Tensor batched,
      ExpertRouting routing,
      Tensor routed,
      Workspace workspace,
      DeviceStream stream) {
    MemorySegment ids = routing.topkIds().segment();
    MemorySegment weights = routing.topkWeights().segment();
    int k = Math.toIntExact(routing.topkIds().size(1));
    long capacity = batched.size(1);
    int width = Math.toIntExact(routed.size(1));
    MemorySegment from = batched.segment();
    TypedKernels typed = kernels.forType(Rows.requireFloat("batched", batched), from);
    long rowBytes = batched.dtype().byteSize(width);
    int[] rows = new int[config.numLocalExperts()];
    MemorySegment to = routed.segment();
    to.fill((byte) 0);
    long pairs = routed.size(0) * k;
    for (long p = 0; p < pairs; p++) {
      int e = local(routing, ids.getAtIndex(I32, p));
      if (e >= 0) {
        float w = config.routerWeightOnInput() ? 1f : weights.getAtIndex(F32, p);
        long at = e * capacity + rows[e]++;
        typed.axpy(w, from, at * rowBytes, to, p / k * width * 4L, width);
      }
    }
  }

  @Override
  public void close() {
    if (arena.scope().isAlive()) {
      arena.close();
    }
  }
}
