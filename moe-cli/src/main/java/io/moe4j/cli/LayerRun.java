package io.moe4j.cli;

import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.MoeCheckpoint;
import io.moe4j.lora.AdapterBatch;
import io.moe4j.lora.AdapterRegistry;
import io.moe4j.oracle.MoeForward;
import io.moe4j.oracle.MoeLayer;
import io.moe4j.oracle.MoeOracle;
import io.moe4j.oracle.Selection;
import java.lang.foreign.Arena;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.TreeMap;
import org.jspecify.annotations.Nullable;

/**
 * Runs layers of one checkpoint over one batch, one layer at a time: weights stay mapped, and what
 * a backend repacks is given back before the next layer. Not thread-safe.
 */
final class LayerRun {
  /** More tokens than this run in pieces, so that scratch memory stays small. */
  private static final int MAX_TOKENS_AT_ONCE = 4096;

  private static final int WARM_FORWARDS = 200;

  private final MoeOracle oracle;
  private final MoeCheckpoint model;
  private final List<LoraAdapter> adapters;
  private final @Nullable String backend;
  private final DType inputDtype;
  private final Map<Integer, MoeConfig> configs = new TreeMap<>();

  /**
   * @param oracle who chooses; stays the caller's
   * @param model stays the caller's, open as long as this is
   * @param adapters with distinct names; stay valid as long as this is open
   * @param backend asked for by name, or null
   * @param activations what quantised layers do with them
   * @param given dtype of the hidden states in their file
   * @param tokens {@code T}
   */
  LayerRun(
      MoeOracle oracle,
      MoeCheckpoint model,
      List<LoraAdapter> adapters,
      @Nullable String backend,
      Activations activations,
      DType given,
      int tokens) {
    this.oracle = oracle;
    this.model = model;
    this.adapters = List.copyOf(adapters);
    this.backend = backend;
    int rank = Math.max(1, adapters.stream().mapToInt(LoraAdapter::maxRank).max().orElse(1));
    for (int layer : model.layers()) {
      MoeConfig.Builder b =
          model.config(layer).toBuilder()
              .inputDtype(given)
              .quantizedActivations(
                  activations == Activations.AS_QUANTISED && asksForThem(model.config(layer)))
              .maxTokens(Math.clamp(tokens, 1, MAX_TOKENS_AT_ONCE));
      if (!adapters.isEmpty()) {
        LoraConfig lora = new LoraConfig(adapters.size(), rank);
        b.lora(changeRouter(adapters) ? lora.withRouter() : lora);
      }
      configs.put(layer, b.build());
    }
    MoeConfig first = Objects.requireNonNull(configs.get(model.layers().getFirst()));
    this.inputDtype = HiddenDtype.choose(oracle, first, backend, given);
    configs.replaceAll((layer, c) -> c.toBuilder().inputDtype(inputDtype).build());
  }

  private static boolean asksForThem(MoeConfig config) {
    return config.quantSchemes().stream().anyMatch(s -> !s.activations().isNone());
  }

  /** {@return whether no layer is computed with quantised activations} */
  boolean unquantised() {
    return configs.values().stream().noneMatch(MoeConfig::quantizedActivations);
  }

  static boolean changeRouter(List<LoraAdapter> adapters) {
    return adapters.stream()
        .flatMap(a -> a.layers().values().stream())
        .anyMatch(l -> l.get(LoraTarget.ROUTER) != null);
  }

  /** {@return the dtype in which layers get the hidden states} */
  DType inputDtype() {
    return inputDtype;
  }

  /** {@return a sentence on what was done to hidden states of another dtype} */
  String rounding(DType given) {
    return "hidden states are rounded from "
        + given
        + " to "
        + inputDtype
        + ", as the GPU takes them";
  }

  /**
   * One layer's results, in memory of the caller's arena.
   *
   * @param selection who computed it, and why
   * @param output F32 {@code [T, H]}
   * @param topkIds int32 {@code [T, K]}
   * @param topkWeights F32 {@code [T, K]}
   * @param prepareNanos choosing, repacking, loading from disk
   * @param forwardNanos the first forward
   * @param warmNanos a forward's time after many; 0 where they were not asked for
   */
  record Result(
      Selection selection,
      Tensor output,
      Tensor topkIds,
      Tensor topkWeights,
      long prepareNanos,
      long forwardNanos,
      long warmNanos) {
    /** {@return the same, without memory that its arena is about to give back} */
    Result withoutTensors() {
      Tensor none = Tensor.ofInts(new int[0], 0);
      return new Result(selection, none, none, none, prepareNanos, forwardNanos, warmNanos);
    }
  }

  /**
   * Runs one layer.
   *
   * @param layer its index in the model
   * @param hidden {@code [T, H]} on the host
   * @param tokenIds I32 {@code [T]} on the host, or null; layers that route by token id need them
   * @param assignment by token: 0 = base, i = the i-th adapter
   * @param arena owns the results
   * @param warmSeconds for how long to repeat the forward afterwards (up to five times as long
   *     where it is slow), 0 = not at all
   */
  Result run(
      int layer,
      Tensor hidden,
      @Nullable Tensor tokenIds,
      int[] assignment,
      Arena arena,
      double warmSeconds) {
    MoeConfig config = configs.get(layer);
    if (config == null) {
      throw new IllegalArgumentException("layer " + layer + " is none of " + configs.keySet());
    }
    if (config.routing().byTokenId() && tokenIds == null) {
      throw CliException.usage(
          "layer "
              + layer
              + " chooses its experts by the tokens' ids: give --token-ids FILE.safetensors:TENSOR.");
    }
    long start = System.nanoTime();
    try (MoeLayer built =
        MoeLayer.builder(config, model.weights(layer)).oracle(oracle).backend(backend).build()) {
      long prepared = System.nanoTime();
      Device device = built.device();
      long t = hidden.size(0);
      int k = config.topK();
      try (Staging staging = new Staging(device, arena)) {
        Tensor in = staging.put(HiddenDtype.convert(hidden, inputDtype, arena));
        Tensor out = staging.empty(DType.F32, t, config.hiddenSize());
        Tensor ids = staging.empty(DType.I32, t, k);
        Tensor weights = staging.empty(DType.F32, t, k);
        MoeForward request = MoeForward.of(in, out).topkInto(ids, weights);
        if (tokenIds != null && config.routing().byTokenId()) {
          request = request.withTokenIds(staging.put(tokenIds));
        }
        if (!adapters.isEmpty()) {
          AdapterRegistry slots =
              staging.own(AdapterRegistry.builder(configs).device(device).build());
          request = request.withLora(staging.own(batch(slots, assignment)).context(layer));
        }
        long begin = System.nanoTime();
        built.forward(request);
        device.defaultStream().synchronize();
        long forward = System.nanoTime() - begin;
        long warm = warmSeconds > 0 ? warm(built, request, warmSeconds) : 0;
        return new Result(
            built.selection(),
            staging.toHost(out),
            staging.toHost(ids),
            staging.toHost(weights),
            prepared - start,
            forward,
            warm);
      }
    }
  }

  /**
   * Until the JIT compiler has seen enough of it, or for so long; the median of the last quarter.
   */
  private static long warm(MoeLayer layer, MoeForward request, double seconds) {
    long start = System.nanoTime();
    List<Long> times = new ArrayList<>();
    double elapsed;
    do {
      long begin = System.nanoTime();
      layer.forward(request);
      layer.device().defaultStream().synchronize();
      long end = System.nanoTime();
      times.add(end - begin);
      elapsed = (end - start) * 1e-9;
    } while (elapsed < seconds || (times.size() < WARM_FORWARDS && elapsed < 5 * seconds));
    List<Long> last = times.subList(times.size() * 3 / 4, times.size()).stream().sorted().toList();
    return last.get(last.size() / 2);
  }

  private AdapterBatch batch(AdapterRegistry slots, int[] assignment) {
    int[] handleOf = new int[adapters.size() + 1];
    handleOf[0] = AdapterRegistry.BASE;
    for (int i = 0; i < adapters.size(); i++) {
      handleOf[i + 1] = slots.load(adapters.get(i));
    }
    return slots.batch(Arrays.stream(assignment).map(i -> handleOf[i]).toArray());
  }
}
