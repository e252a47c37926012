package io.moe4j.backend.cpu;

import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.RmsNorm;
import io.moe4j.api.config.SharedExpertConfig;
import io.moe4j.api.config.SharedExpertConfig.Combine;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.spi.Fact;
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
import org.jspecify.annotations.Nullable;

/** Router, topk, latent projections, shared expert, dispatch and combine on the host. */
final class CpuBlockOps implements BlockOps {
  private static final ValueLayout.OfFloat F32 = ValueLayout.JAVA_FLOAT_UNALIGNED;
  private static final ValueLayout.OfInt I32 = ValueLayout.JAVA_INT_UNALIGNED;

  private final MoeConfig config;
  private final Kernels kernels;
  private final Arena arena = Arena.ofShared();
  private final @Nullable DenseLayer router;
  private final @Nullable NormRows routerNorm;
  private final @Nullable NormRows inputNorm;
  private final OutputRows outputRows;
  private final @Nullable DenseLayer latentIn;
  private final @Nullable DenseLayer latentOut;
  private final @Nullable Mlp shared;
  private final @Nullable SharedAsQuantised sharedAsQuantised;
  private final @Nullable DenseLayer sharedGate;
  private final RouteRows routing;

  CpuBlockOps(MoeConfig config, MoeLayerWeights weights, Mlps mlps) {
    this.config = config;
    this.kernels = mlps.java();
    int loras = config.lora().map(LoraConfig::maxLoras).orElse(0);
    int rank = config.lora().map(LoraConfig::maxRank).orElse(0);
    RouterWeights r = weights.router();
    router =
        r == null ? null : new DenseLayer(r.weight(), r.bias(), arena, mlps.block(), null, 0, 0);
    Tensor table = r == null ? null : r.tokenExperts();
    routing =
        new RouteRows(
            new RouteRows.Rule(
                config.routing(),
                config.numChoices(),
                config.topK(),
                floats(r == null ? null : r.correctionBias()),
                floats(r == null ? null : r.expertScale()),
                table == null ? new int[0] : requireExperts(table.toInts(), config)),
            mlps.block(),
            arena);
    routerNorm = norm(config.routing().inputNorm(), r == null ? null : r.norm());
    inputNorm = norm(config.inputNorm(), weights.inputNorm());
    LatentWeights l = weights.latent();
    latentIn = l == null ? null : dense(l.in(), LoraTarget.LATENT_IN, mlps, loras, rank);
    latentOut = l == null ? null : dense(l.out(), LoraTarget.LATENT_OUT, mlps, loras, rank);
    SharedExpertWeights s = weights.shared();
    SharedExpertConfig c = config.sharedExpert().orElse(null);
    sharedAsQuantised = SharedAsQuantised.of(config, s);
    if (s == null || c == null) {
      shared = null;
      sharedGate = null;
    } else {
      shared =
          mlps.of(
              c.activation(),
              List.of(s.mlp()),
              arena,
              true,
              new Mlp.Options(1, false, loras, rank, config.batchInvariant()));
      Tensor gate = s.sigmoidGate();
      sharedGate =
          gate == null ? null : dense(gate, LoraTarget.SHARED_EXPERT_GATE, mlps, loras, rank);
    }
    Tensor outputBias = weights.outputBias();
    outputRows =
        new OutputRows(
            mlps.block(),
            config.hiddenSize(),
            shared != null && c != null && c.combine() == Combine.AVERAGE,
            outputBias == null ? null : Rows.vector(FileMemory.copied(outputBias), arena));
  }

  private static float[] floats(@Nullable Tensor t) {
    return t == null ? new float[0] : t.toFloats();
  }

  private static @Nullable NormRows norm(Optional<RmsNorm> config, @Nullable Tensor norm) {
    return config.isEmpty() || norm == null ? null : new NormRows(config.get(), norm);
  }

  /** The table comes from a file; an id outside it would read or write past an array. */
  private static int[] requireExperts(int[] table, MoeConfig config) {
    for (int i = 0; i < table.length; i++) {
      if (table[i] < 0 || table[i] >= config.numChoices()) {
        throw new IllegalArgumentException(
            "router tokenExperts["
                + i / config.topK()
                + ", "
                + i % config.topK()
                + "] is "
                + table[i]
                + ", must be 0.."
                + (config.numChoices() - 1));
      }
    }
    return table;
  }

  private DenseLayer dense(Tensor w, LoraTarget target, Mlps mlps, int loras, int rank) {
    return new DenseLayer(w, null, arena, mlps.block(), target, loras, rank);
  }

  @Override
  public long workspaceBytes(int maxTokens) {
    return scratchOffset(maxTokens) + scratchBytes(maxTokens);
  }

  @Override
  public List<Fact> facts() {
    return shared == null ? List.of() : MlpFacts.shared(shared.facts());
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
    MemorySegment x = FileMemory.read(hidden);
    DType type = Rows.requireFloat("hidden", hidden);
    if (routerNorm != null) {
      // In place of the sum, which is not needed yet.
      x = ws.asSlice(0, accumulatorBytes(tokens));
      type = DType.F32;
      routerNorm.run(kernels, hidden, x);
    }
    router.run(x, type, tokens, null, logits.segment(), 0, ws, scratchOffset(tokens));
  }

  @Override
  public void route(
      Tensor logits, Tensor topkIds, Tensor topkWeights, Workspace workspace, DeviceStream stream) {
    routing.run(logits, null, topkIds, topkWeights);
  }

  @Override
  public void routeByTokenId(
      Tensor logits,
      Tensor tokenIds,
      Tensor topkIds,
      Tensor topkWeights,
      Workspace workspace,
      DeviceStream stream) {
    routing.run(logits, tokenIds, topkIds, topkWeights);
  }

  @Override
  public void inputNorm(Tensor hidden, Tensor normed, Workspace workspace, DeviceStream stream) {
    if (inputNorm == null) {
      throw new IllegalStateException("the layer does not normalise its experts' input");
    }
    inputNorm.run(kernels, hidden, normed.segment());
  }

  @Override
  public void routerNorm(Tensor hidden, Tensor normed, Workspace workspace, DeviceStream stream) {
    if (routerNorm == null) {
      throw new IllegalStateException("the layer does not normalise its router's input");
    }
    routerNorm.run(kernels, hidden, normed.segment());
  }

  @Override
  public void splitZeroExperts(
      Tensor topkIds,
      Tensor topkWeights,
      Tensor expertIds,
      Tensor zeroWeights,
      DeviceStream stream) {
    MemorySegment ids = topkIds.segment();
    MemorySegment weights = topkWeights.segment();
    int k = Math.toIntExact(topkIds.size(1));
    for (long t = 0; t < topkIds.size(0); t++) {
      float sum = 0;
      for (long p = t * k; p < (t + 1) * k; p++) {
        int id = ids.getAtIndex(I32, p);
        boolean zero = id >= config.numExperts();
        sum += zero ? weights.getAtIndex(F32, p) : 0;
        expertIds.segment().setAtIndex(I32, p, zero ? -1 : id);
      }
      zeroWeights.segment().setAtIndex(F32, t, sum);
    }
  }

  @Override
  public void addZeroExperts(
      Tensor hidden, Tensor zeroWeights, Tensor routed, DeviceStream stream) {
    int h = config.hiddenSize();
    MemorySegment from = FileMemory.read(hidden);
    TypedKernels typed = kernels.forType(Rows.requireFloat("hidden", hidden), from);
    long rowBytes = hidden.dtype().byteSize(h);
    for (long t = 0; t < hidden.size(0); t++) {
      float w = zeroWeights.segment().getAtIndex(F32, t);
      if (w != 0) {
        typed.axpy(w, from, t * rowBytes, routed.segment(), t * h * 4L, h);
      }
    }
  }

  @Override
  public void latentIn(
      Tensor hidden,
      @Nullable MoeLoraContext lora,
      Tensor latent,
      Workspace workspace,
      DeviceStream stream) {
    if (latentIn == null) {
      throw new IllegalStateException("the layer has no latent projections");
    }
    int tokens = Math.toIntExact(hidden.size(0));
    latentIn.run(
        FileMemory.read(hidden),
        Rows.requireFloat("hidden", hidden),
        tokens,
        lora,
        latent.segment(),
        0,
        memory(workspace, tokens),
        scratchOffset(tokens));
  }

  @Override
  public void output(
      Tensor hidden,
      Tensor routed,
      @Nullable MoeLoraContext lora,
      Tensor output,
      Workspace workspace,
      DeviceStream stream) {
    int tokens = Math.toIntExact(hidden.size(0));
    MemorySegment ws = memory(workspace, tokens);
    long scratch = scratchOffset(tokens);
    long sharedOut = accumulatorBytes(tokens);
    long gate = 2 * accumulatorBytes(tokens);
    DType type = Rows.requireFloat("hidden", hidden);
    MemorySegment x = FileMemory.read(hidden);
    MemorySegment sum = ws.asSlice(0, accumulatorBytes(tokens));
    MemorySegment from = sum;
    if (latentOut != null) {
      latentOut.run(FileMemory.read(routed), DType.F32, tokens, lora, ws, 0, ws, scratch);
    } else {
      from = FileMemory.read(routed);
    }
    MemorySegment sharedRows = null;
    if (shared != null) {
      sharedRows = ws.asSlice(sharedOut, accumulatorBytes(tokens));
      if (sharedAsQuantised != null) {
        sharedAsQuantised.run(hidden, lora, sharedRows);
      } else {
        shared.run(
            new MlpCall(x, type, tokens, 1, null, null, null, lora, sharedRows, DType.F32),
            ws.asSlice(scratch));
      }
      if (sharedGate != null) {
        sharedGate.run(x, type, tokens, lora, ws, gate, ws, scratch);
      }
    }
    DType outType = Rows.requireFloat("output", output);
    MemorySegment out = FileMemory.standIn(output.segment());
    MemorySegment gates = sharedGate == null ? null : ws.asSlice(gate, 4L * tokens);
    outputRows.run(new OutputRows.Batch(tokens, from, sum, sharedRows, gates, out, outType));
    FileMemory.writeBack(out, output.segment());
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
      @Nullable Tensor tokenLoraMapping,
      Tensor batched,
      Tensor expertNumTokens,
      @Nullable Tensor batchedLoraMapping,
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
      if (tokenLoraMapping != null && batchedLoraMapping != null) {
        int slot = tokenLoraMapping.segment().getAtIndex(I32, t);
        batchedLoraMapping.segment().setAtIndex(I32, at, slot);
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
