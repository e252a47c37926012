package io.moe4j.cuda.ops;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.config.SharedExpertConfig;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.LatentWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.RouterWeights;
import io.moe4j.api.weights.SharedExpertWeights;
import io.moe4j.cuda.Gpu;
import io.moe4j.cuda.GpuTest;
import io.moe4j.reference.ReferenceBlockOps;
import java.lang.foreign.MemorySegment;
import java.util.Collections;
import java.util.Random;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** A whole block around the experts against the float64 reference. */
@GpuTest
class CudaBlockOpsTest {
  private static final int H = 72;
  private static final int D = 40;
  private static final int I = 56;
  private static final int E = 12;
  private static final int K = 3;
  private static final Workspace NONE =
      new Workspace(new HostMemory(MemorySegment.ofArray(new byte[0])));

  private final Random random = new Random(11);

  private Tensor weight(DType dtype, int rows, int columns) {
    return Gpu.host(dtype, Gpu.random(random, rows * columns, 0.2f), rows, columns);
  }

  private MoeLayerWeights weights(MoeConfig c, DType t) {
    int width = c.expertHiddenSize();
    ExpertWeights.Expert expert =
        ExpertWeights.Expert.plain(weight(t, I, width), weight(t, I, width), weight(t, width, I));
    int s = c.sharedExpert().orElseThrow().intermediateSize();
    // A transposed view: the device wants dense rows, the file does not have them.
    Tensor up = weight(t, H, s).transpose(0, 1);
    return new MoeLayerWeights(
        new ExpertWeights(Collections.nCopies(c.numLocalExperts(), expert)),
        new RouterWeights(weight(DType.F32, E, H), weight(DType.F32, 1, E).reshape(E), null),
        new SharedExpertWeights(
            ExpertWeights.Expert.plain(weight(t, s, H), up, weight(t, H, s)), weight(t, 1, H)),
        c.latentSize() == 0 ? null : new LatentWeights(weight(t, D, H), weight(t, H, D)));
  }

  @ParameterizedTest
  @CsvSource({
    "F32, F32, 5, 0",
    "F32, BF16, 37, 0",
    "BF16, BF16, 3, 0",
    "BF16, BF16, 150, 40",
    "F16, F16, 40, 0",
    "F32, F16, 20, 40",
    "BF16, F32, 17, 40",
  })
  void agreesWithTheReference(DType input, DType weightType, int tokens, int latent) {
    MoeConfig config =
        MoeConfig.builder(H, I, E, K)
            .inputDtype(input)
            .weightDtype(weightType)
            .latentSize(latent)
            .sharedExpert(new SharedExpertConfig(48, Activation.SILU, true))
            .maxTokens(tokens)
            .build();
    MoeLayerWeights weights = weights(config, weightType);
    Tensor hidden = Gpu.host(input, Gpu.random(random, tokens * H, 1f), tokens, H);
    int width = config.expertHiddenSize();
    Tensor routed = Gpu.host(DType.F32, Gpu.random(random, tokens * width, 1f), tokens, width);
    BlockOps reference = new ReferenceBlockOps(config, weights);
    double tolerance = input == DType.F32 ? 3e-6 : input == DType.F16 ? 2e-3 : 1e-2;
    try (Gpu gpu = new Gpu();
        BlockOps ops = new CudaBlockOpsProvider().prepare(config, weights, gpu.device)) {
      Workspace guarded = guarded(gpu, ops.workspaceBytes(tokens));

      Tensor logits = gpu.empty(DType.F32, tokens, E);
      ops.routerLogits(gpu.upload(hidden), logits, guarded, gpu.stream);
      Tensor wantLogits = Tensor.ofFloats(new float[tokens * E], tokens, E);
      reference.routerLogits(hidden, wantLogits, NONE, DeviceStream.HOST);
      Gpu.assertClose(gpu.floats(logits), wantLogits.toDoubles(), 2e-6, "router logits");

      if (latent > 0) {
        Tensor in = gpu.empty(DType.F32, tokens, D);
        ops.latentIn(gpu.upload(hidden), null, in, guarded, gpu.stream);
        Tensor want = Tensor.ofFloats(new float[tokens * D], tokens, D);
        reference.latentIn(hidden, null, want, NONE, DeviceStream.HOST);
        Gpu.assertClose(gpu.floats(in), want.toDoubles(), 2e-6, "latent in");
      }

      Tensor out = gpu.empty(input, tokens, H);
      ops.output(gpu.upload(hidden), gpu.upload(routed), null, out, guarded, gpu.stream);
      Tensor want = Tensor.ofFloats(new float[tokens * H], tokens, H);
      reference.output(hidden, routed, null, want, NONE, DeviceStream.HOST);
      Gpu.assertClose(gpu.floats(out), want.toDoubles(), tolerance, "output");
    }
  }

  private static Workspace guarded(Gpu gpu, long bytes) {
    Tensor t = gpu.empty(DType.U8, bytes);
    return new Workspace(
        new io.moe4j.api.tensor.DeviceMemory(gpu.device.info().id(), t.deviceAddress(), bytes));
  }

  @ParameterizedTest
  @CsvSource({"F32, false, 50", "BF16, false, 50", "BF16, true, 50", "F16, true, 3000"})
  void dispatchAndCombineUndoEachOther(DType input, boolean weightOnInput, int tokens) {
    int[] local = new int[E];
    for (int e = 0; e < E; e++) {
      local[e] = e % 3 == 0 ? -1 : e - e / 3 - 1;
    }
    ExpertMap map = ExpertMap.of(local);
    MoeConfig config =
        MoeConfig.builder(H, I, E, K)
            .inputDtype(input)
            .parallel(ParallelConfig.expert(2, 0))
            .expertMap(map)
            .routerWeightOnInput(weightOnInput)
            .maxTokens(tokens)
            .sharedExpert(new SharedExpertConfig(8, Activation.SILU, true))
            .build();
    int n = config.numLocalExperts();
    MoeLayerWeights weights = weights(config, DType.BF16);
    Tensor hidden = Gpu.host(input, Gpu.random(random, tokens * H, 1f), tokens, H);
    int[] ids = random.ints((long) tokens * K, -1, E + 1).toArray();
    float[] topk = Gpu.random(random, tokens * K, 1f);
    int[] slots = random.ints(tokens, -1, 4).toArray();
    ExpertRouting host =
        new ExpertRouting(
            Tensor.ofInts(ids, tokens, K),
            Tensor.ofFloats(topk, tokens, K),
            Tensor.ofInts(local, E));
    BlockOps reference = new ReferenceBlockOps(config, weights);
    Tensor wantBatched = Gpu.host(input, new float[n * tokens * H], n, tokens, H);
    Tensor wantCounts = Tensor.ofInts(new int[n], n);
    Tensor wantSlots = Tensor.ofInts(new int[n * tokens], n, tokens);
    reference.dispatch(
        hidden,
        host,
        Tensor.ofInts(slots, tokens),
        wantBatched,
        wantCounts,
        wantSlots,
        NONE,
        DeviceStream.HOST);
    Tensor wantRouted = Tensor.ofFloats(new float[tokens * H], tokens, H);
    reference.combine(wantBatched, host, wantRouted, NONE, DeviceStream.HOST);

    try (Gpu gpu = new Gpu();
        BlockOps ops = new CudaBlockOpsProvider().prepare(config, weights, gpu.device)) {
      Workspace workspace = guarded(gpu, ops.workspaceBytes(tokens));
      ExpertRouting routing =
          new ExpertRouting(
              gpu.upload(host.topkIds()), gpu.upload(host.topkWeights()), gpu.ints(local, E));
      Tensor batched = gpu.empty(input, n, tokens, H);
      Tensor counts = gpu.empty(DType.I32, n);
      Tensor batchedSlots = gpu.empty(DType.I32, n, tokens);
      ops.dispatch(
          gpu.upload(hidden),
          routing,
          gpu.ints(slots, tokens),
          batched,
          counts,
          batchedSlots,
          workspace,
          gpu.stream);
      int[] got = gpu.ints(counts);
      assertThat(got).isEqualTo(wantCounts.toInts());
      Tensor gotBatched = gpu.download(batched);
      Tensor gotSlots = gpu.download(batchedSlots);
      for (int e = 0; e < n; e++) {
        for (int j = 0; j < got[e]; j++) {
          assertThat(gotSlots.get(e, j)).isEqualTo(wantSlots.get(e, j));
          assertThat(gotBatched.select(0, e).select(0, j).toFloats())
              .as("row %d of expert %d", j, e)
              .isEqualTo(wantBatched.select(0, e).select(0, j).toFloats());
        }
      }
      Tensor routed = gpu.empty(DType.F32, tokens, H);
      ops.combine(batched, routing, routed, workspace, gpu.stream);
      Gpu.assertClose(gpu.floats(routed), wantRouted.toDoubles(), 2e-6, "routed");
    }
  }
}
