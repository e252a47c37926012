package io.moe4j.backend.flashinfer;

import io.moe4j.api.DeviceException;
import io.moe4j.api.device.Device;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import org.jspecify.annotations.Nullable;

/**
 * The module's object for one scheme and dtype, and its functions in their version's form. The
 * module lets one call at a time into an object (only while it enqueues). Safe for several threads.
 */
final class CutlassRunner implements AutoCloseable {
  private final FlashInferModule module;
  private final TvmModule runner;
  private final boolean fused;
  private final FlashInferModule.Bound run;
  private final FlashInferModule.@Nullable Bound size;
  private final FlashInferModule.@Nullable Bound valid;
  private final FlashInferModule.@Nullable Bound occupancy;
  private final int firstCount;
  private final int secondCount;
  private final Map<Tactics, TvmObject> tacticArrays = new ConcurrentHashMap<>();

  /**
   * Makes the object, which asks the device what it is.
   *
   * @param module loaded, for the device
   * @param device open
   * @param scheme of the weights
   * @param type dtype of hidden states and of the output
   * @param fused whether the weighted sum may be made inside the second product, with atomics;
   *     versions before 0.6.15 are not asked and do as they like
   * @throws DeviceException in FlashInfer's words, if it has no kernels for that
   */
  CutlassRunner(
      FlashInferModule module, Device device, CutlassScheme scheme, DType type, boolean fused) {
    this.module = module;
    this.fused = fused;
    try (FlashInferModule.Bound init = module.bind(module.function("init"), "init");
        TvmCall _ = TvmCall.on(device, device.defaultStream())) {
      try (TvmArguments a =
          new NamedArguments()
              .dtype("activation_dtype", scheme.inputDtype(type))
              .dtype("weight_dtype", scheme.weightDtype(type))
              .dtype("output_dtype", type)
              .bool("use_deepseek_fp8_block_scale", scheme == CutlassScheme.FP8_BLOCK)
              .bool("use_w4_group_scaling", scheme.isMixed())
              .bool("use_mxfp8_act_scaling", scheme.input() == CutlassScheme.Input.MXFP8)
              .bool("use_packed_weights", false)
              .bool("use_fused_finalize", fused)
              .bool("use_wfp4afp8_humming", false)
              .inOrderOf(init.signature())) {
        runner = module.runtime().make(init.function(), a, module.library().module() + " runner");
      }
    } catch (UnavailableException e) {
      throw new DeviceException(e.reason(), e);
    }
    try {
      run = module.bind(runner.function("run_moe"), "run_moe");
      size = optional("get_workspace_size", ArgumentLists.WORKSPACE_SIZE);
      valid = optional("get_valid_tactics_for_shape", ArgumentLists.VALID_TACTICS);
      occupancy = optional("get_tactic_occupancy", ArgumentLists.OCCUPANCY);
      firstCount = count("get_gemm1_tactic_count");
      secondCount = count("get_gemm2_tactic_count");
    } catch (UnavailableException e) {
      runner.close();
      throw new DeviceException(e.reason(), e);
    } catch (RuntimeException | Error e) {
      runner.close();
      throw e;
    }
  }

  /** A function that only some versions have. */
  private FlashInferModule.@Nullable Bound optional(String name, Signature signature)
      throws UnavailableException {
    TvmFunction function;
    try {
      function = runner.function(name);
    } catch (UnavailableException e) {
      return null;
    }
    return module.bind(function, List.of(signature));
  }

  private int count(String function) throws UnavailableException {
    try (TvmFunction f = runner.function(function);
        TvmArguments none = TvmArguments.none()) {
      return Math.toIntExact(f.callForLong(none));
    }
  }

  /** {@return whether sums may be fused} */
  boolean isFused() {
    return fused;
  }

  /** {@return which FlashInfer it is of} */
  FlashInferLibrary library() {
    return module.library();
  }

  /** {@return whether this version is given its workspace and says how much it needs} */
  boolean takesWorkspace() {
    return size != null && run.signature().has("workspace_buffer");
  }

  /** {@return kernels for the first product} */
  int firstCount() {
    return firstCount;
  }

  /** {@return kernels for the second product} */
  int secondCount() {
    return secondCount;
  }

  /**
   * Bytes that a call needs.
   *
   * @return 0 where this version takes its memory from the allocator
   */
  long workspaceBytes(long tokens, long hidden, long inter, int topK, ExpertBlock block, int kind) {
    FlashInferModule.Bound sizes = size;
    if (sizes == null) {
      return 0;
    }
    return sizes.callForLong(
        parallel(block)
            .integer("num_rows", tokens)
            .integer("hidden_size", hidden)
            .integer("inter_size", inter)
            .integer("num_experts_total", (long) block.local() * block.ranks())
            .integer("experts_per_token", topK)
            .bool("min_latency_mode", false)
            .integer("base_activation_type", kind));
  }

  /**
   * Kernels of one product that may be tried: a kernel whose tile does not fit can read past a
   * matrix, which ends the process's use of the device.
   *
   * @param product 1 or 2
   * @param columns of the product's output
   * @param depth the length of its sums
   * @param scheme the runner's; kernels of mixed products must not be tried unasked
   */
  long[] validTactics(int product, long columns, long depth, CutlassScheme scheme) {
    if (!scheme.hasTactics()) {
      return new long[0];
    }
    FlashInferModule.Bound asked = valid;
    if (asked == null) {
      if (scheme.isMixed()) {
        return new long[0];
      }
      int first = product == 1 ? 0 : firstCount;
      int count = product == 1 ? firstCount : secondCount;
      return withRoom(java.util.stream.LongStream.range(first, first + count).toArray());
    }
    try (TvmArguments a =
        new NamedArguments()
            .integer("stage", product)
            .integer("gemm_n", columns)
            .integer("gemm_k", depth)
            .inOrderOf(asked.signature())) {
      return withRoom(module.runtime().integers(asked.function(), a));
    }
  }

  /** Without those that the card has no shared memory for. */
  private long[] withRoom(long[] tactics) {
    FlashInferModule.Bound asked = occupancy;
    return asked == null
        ? tactics
        : Arrays.stream(tactics)
            .filter(t -> asked.callForLong(new NamedArguments().integer("tactic_id", t)) > 0)
            .toArray();
  }

  private static NamedArguments parallel(ExpertBlock block) {
    return new NamedArguments()
        .integer("tp_size", 1)
        .integer("tp_rank", 0)
        .integer("ep_size", block.ranks())
        .integer("ep_rank", block.rank());
  }

  /**
   * One forward's tensors.
   *
   * @param output {@code [T, H]} in the layer's dtype, overwritten
   * @param input {@code [T, H]} in {@link CutlassScheme#inputDtype}
   * @param inputScales E8M0 bytes {@code [T, H / 32]} of MXFP8 input, else null
   * @param ids int32 {@code [T, K]}
   * @param weights F32 {@code [T, K]}
   * @param workspace bytes; null = the module takes memory from the allocator
   */
  record Forward(
      Tensor output,
      Tensor input,
      @Nullable Tensor inputScales,
      Tensor ids,
      Tensor weights,
      @Nullable Tensor workspace) {}

  /**
   * What stays the same from call to call.
   *
   * @param experts the layer's
   * @param scales as an array, null for none
   * @param alpha one number an expert, or null
   * @param beta likewise
   * @param limit likewise
   * @param kind FlashInfer's number of the activation
   * @param programmaticLaunch whether kernels may begin while those in front of them end
   */
  record Layer(
      CutlassWeights experts,
      @Nullable TvmObject scales,
      @Nullable Tensor alpha,
      @Nullable Tensor beta,
      @Nullable Tensor limit,
      int kind,
      boolean programmaticLaunch) {}

  /** Enqueues a forward; to be called inside a {@link TvmCall}. */
  void run(Forward f, Layer layer, ExpertBlock block, Tactics tactics) {
    CutlassWeights w = layer.experts();
    run.call(
        parallel(block)
            .tensor("output", f.output())
            .tensor("input", f.input())
            .tensor("token_selected_experts", f.ids())
            .tensor("token_final_scales", f.weights())
            .tensor("fc1_expert_weights", w.w13())
            .tensor("fc1_expert_biases", w.b13())
            .tensor("fc2_expert_weights", w.w2())
            .tensor("fc2_expert_biases", w.b2())
            .object("quant_scales", layer.scales())
            .tensor("input_sf", f.inputScales())
            .tensor("swiglu_alpha", layer.alpha())
            .tensor("swiglu_beta", layer.beta())
            .tensor("swiglu_limit", layer.limit())
            .bool("swizzled_input_sf", false)
            .integer("cluster_size", 1)
            .integer("cluster_rank", 0)
            .bool("enable_alltoall", false)
            .bool("min_latency_mode", false)
            .object("profile_ids", array(tactics))
            .bool("enable_pdl", layer.programmaticLaunch())
            .integer("base_activation_type", layer.kind())
            .tensor("workspace_buffer", f.workspace()));
  }

  private TvmObject array(Tactics t) {
    return tacticArrays.computeIfAbsent(t, k -> module.runtime().integers(k.first(), k.second()));
  }

  @Override
  public void close() {
    tacticArrays.values().forEach(TvmObject::close);
    run.close();
    for (FlashInferModule.@Nullable Bound b :
        Arrays.<FlashInferModule.@Nullable Bound>asList(size, valid, occupancy)) {
      if (b != null) {
        b.close();
      }
    }
    runner.close();
  }
}
