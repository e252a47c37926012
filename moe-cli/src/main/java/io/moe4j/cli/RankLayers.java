package io.moe4j.cli;

import io.moe4j.api.comm.Communicator;
import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.checkpoint.MoeCheckpoint;
import io.moe4j.checkpoint.TensorParallel;
import io.moe4j.lora.AdapterRegistry;
import io.moe4j.oracle.MoeForward;
import io.moe4j.oracle.MoeLayer;
import io.moe4j.oracle.MoeOracle;
import io.moe4j.oracle.Selection;
import java.lang.foreign.Arena;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.TreeMap;
import org.jspecify.annotations.Nullable;

/** One rank's part of a checkpoint's layers. Not thread-safe. */
final class RankLayers {
  private final MoeOracle oracle;
  private final MoeCheckpoint model;
  private final AdapterFiles files;
  private final @Nullable String backend;
  private final ParallelConfig rank;
  private final int rankTokens;
  private final DType inputDtype;
  private final Map<Integer, MoeConfig> whole = new TreeMap<>();

  /**
   * @param given dtype of the hidden states
   * @param tokens of all ranks together, which share them evenly or have all of them each
   */
  RankLayers(
      MoeOracle oracle,
      MoeCheckpoint model,
      AdapterFiles files,
      @Nullable String backend,
      DType given,
      int tokens,
      ParallelConfig rank) {
    this.oracle = oracle;
    this.model = model;
    this.files = files;
    this.backend = backend;
    this.rank = rank;
    int shared = rank.replicatedTokens() ? 1 : rank.worldSize();
    this.rankTokens = Math.max(1, Math.ceilDiv(tokens, shared));
    List<LoraAdapter> adapters = files.adapters();
    int r = Math.max(1, adapters.stream().mapToInt(LoraAdapter::maxRank).max().orElse(1));
    for (int layer : model.layers()) {
      MoeConfig.Builder b =
          model.config(layer).toBuilder().inputDtype(given).maxTokens(Math.max(1, tokens));
      if (!adapters.isEmpty()) {
        LoraConfig lora = new LoraConfig(adapters.size(), r);
        b.lora(LayerRun.changeRouter(adapters) ? lora.withRouter() : lora);
      }
      whole.put(layer, b.build());
    }
    MoeConfig first = configs(rank).values().iterator().next();
    this.inputDtype = HiddenDtype.choose(oracle, first, backend, given);
    whole.replaceAll((layer, c) -> c.toBuilder().inputDtype(inputDtype).build());
  }

  /** {@return what a rank builds, by layer} */
  Map<Integer, MoeConfig> configs(ParallelConfig of) {
    Map<Integer, MoeConfig> mine = new TreeMap<>();
    whole.forEach((layer, c) -> mine.put(layer, TensorParallel.config(c, of)));
    return mine;
  }

  /**
   * What a layer gave for this rank's tokens.
   *
   * @param selection who computed, and how rows moved
   * @param hidden dtype of the hidden states that the layer got
   * @param output F32 {@code [T, H]}, on the host like the others
   * @param topkIds int32 {@code [T, K]}
   * @param topkWeights F32 {@code [T, K]}
   * @param nanos of the forward
   */
  record Result(
      Selection selection,
      DType hidden,
      Tensor output,
      Tensor topkIds,
      Tensor topkWeights,
      long nanos) {}

  /**
   * This rank's tokens through the layer of all ranks.
   *
   * @param assignment by token: 0 = base, i = the i-th adapter
   */
  Result together(
      int layer, Tensor hidden, @Nullable Tensor tokenIds, int[] assignment, RankGroup group) {
    return run(layer, rank, hidden, tokenIds, assignment, group.communicator(), group.device());
  }

  /** The same tokens through a whole layer of its own. */
  Result alone(
      int layer, Tensor hidden, @Nullable Tensor tokenIds, int[] assignment, Device device) {
    return run(layer, ParallelConfig.SINGLE, hidden, tokenIds, assignment, null, device);
  }

  private Result run(
      int layer,
      ParallelConfig of,
      Tensor hidden,
      @Nullable Tensor tokenIds,
      int[] assignment,
      @Nullable Communicator group,
      Device device) {
    Map<Integer, MoeConfig> configs = configs(of);
    MoeConfig config = Objects.requireNonNull(configs.get(layer));
    ExpertMap experts = ExpertMap.linear(config.numExperts(), of.epSize(), of.epRank());
    MoeLayerWeights weights = TensorParallel.of(of).weights(model.weights(layer, experts));
    MoeLayer.Builder builder =
        MoeLayer.builder(config, weights).oracle(oracle).backend(backend).device(device);
    if (group != null) {
      builder.communicator(group);
    }
    int tokens = assignment.length;
    Arena arena = Arena.ofAuto();
    try (MoeLayer built = builder.build();
        Staging staging = new Staging(device, arena)) {
      Tensor output = staging.empty(DType.F32, tokens, config.hiddenSize());
      Tensor ids = staging.empty(DType.I32, tokens, config.topK());
      Tensor topkWeights = staging.empty(DType.F32, tokens, config.topK());
      Tensor in = staging.put(HiddenDtype.convert(hidden, inputDtype, arena));
      MoeForward request =
          MoeForward.of(in, output)
              .topkInto(ids, topkWeights)
              .withRankTokens(Math.max(rankTokens, tokens));
      if (tokenIds != null && config.routing().byTokenId()) {
        request = request.withTokenIds(staging.put(tokenIds));
      }
      if (!files.names().isEmpty()) {
        AdapterRegistry slots =
            staging.own(AdapterRegistry.builder(configs).device(device).build());
        int[] handles = handles(slots, files.adapters(experts, of), assignment);
        MoeLoraContext context = staging.own(slots.batch(handles)).context(layer);
        request =
            request.withLora(
                context.withTokenLoraMapping(
                    context.tokenLoraMapping().narrow(0, files.names().size(), tokens)));
      }
      long begin = System.nanoTime();
      built.forward(request);
      device.defaultStream().synchronize();
      long nanos = System.nanoTime() - begin;
      return new Result(
          built.selection(),
          inputDtype,
          staging.toHost(output),
          staging.toHost(ids),
          staging.toHost(topkWeights),
          nanos);
    }
  }

  /** All adapters come first, so that they have the same slots on every rank. */
  private static int[] handles(
      AdapterRegistry slots, List<LoraAdapter> adapters, int[] assignment) {
    List<Integer> handles = new ArrayList<>();
    adapters.forEach(a -> handles.add(slots.load(a)));
    for (int a : assignment) {
      handles.add(a == 0 ? AdapterRegistry.BASE : handles.get(a - 1));
    }
    return handles.stream().mapToInt(Integer::intValue).toArray();
  }
}
