package io.moe4j.backend.flashinfer;

import io.moe4j.api.DeviceException;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import org.jspecify.annotations.Nullable;

/**
 * The function of the TRTLLM module for a scheme, like {@code trtllm_bf16_moe}: sort of the pairs,
 * both products, activation, weighted sum. Routing is given as ids and weights, because deltas of
 * the first product must be there before the call and the ids before them; so a token gets the same
 * experts with adapters and without. Safe for several threads.
 */
final class TrtllmRunner implements AutoCloseable {
  /** Ids and weights in tensors of their own, in FlashInfer's numbers. */
  private static final int SEPARATE_IDS = 2;

  /** Weights as they are given. */
  private static final int TOPK = 5;

  /** {@code [E, K / 64, M, 64]}: blocks of 128 bytes of a row. */
  private static final int BLOCK_MAJOR_K = 2;

  /** {@code [E, M, K]}. */
  private static final int MAJOR_K = 0;

  private static final int SWIGLU = 3;

  /** FP8 with scales of 128 x 128 and of 128, in FlashInfer's numbers. */
  private static final int FP8_BLOCKS = 1;

  /** FP8 with E8M0 scales. */
  private static final int MXFP8 = 2;

  private final FlashInferModule module;
  private final TrtllmScheme scheme;
  private final FlashInferModule.Bound run;
  private final TvmObject anyTactic;
  private final TvmObject none;

  TrtllmRunner(FlashInferModule module, TrtllmScheme scheme) {
    this.module = module;
    this.scheme = scheme;
    try {
      run = module.bind(module.function(scheme.function()), scheme.function());
    } catch (UnavailableException e) {
      throw new DeviceException(e.reason(), e);
    }
    anyTactic = module.runtime().integers(-1, -1);
    none = module.runtime().tensors(java.util.List.of());
  }

  /**
   * What stays the same from call to call.
   *
   * @param matrices of the scheme
   * @param alpha F32, one number an expert, or null
   * @param beta likewise
   * @param limit likewise
   * @param intermediate {@code I}, padded
   * @param block this rank's experts
   * @param topK experts a token
   */
  record Layer(
      Matrices matrices,
      @Nullable Tensor alpha,
      @Nullable Tensor beta,
      @Nullable Tensor limit,
      long intermediate,
      ExpertBlock block,
      int topK) {}

  /**
   * A layer's weights.
   *
   * @param w13 see {@link TrtllmWeights}, {@link TrtllmScaledWeights} and {@link
   *     TrtllmBlockWeights}
   * @param w13Scales or null
   * @param w2 likewise
   * @param w2Scales or null
   * @param b13 F32, in the order of the rows, or null
   * @param b2 likewise
   * @param each the scales of each expert, or null
   */
  record Matrices(
      Tensor w13,
      @Nullable Tensor w13Scales,
      Tensor w2,
      @Nullable Tensor w2Scales,
      @Nullable Tensor b13,
      @Nullable Tensor b2,
      @Nullable TrtllmTensorScales each) {
    static Matrices of(
        MoeConfig config, ExpertWeights experts, TrtllmScheme scheme, DeviceTensors tensors) {
      return switch (scheme) {
        case PLAIN -> {
          TrtllmWeights w =
              new TrtllmWeights(
                  experts, config.expertHiddenSize(), config.intermediateSize(), tensors);
          yield new Matrices(w.w13(), null, w.w2(), null, null, null, null);
        }
        case FP8_BLOCK -> {
          TrtllmBlockWeights w = new TrtllmBlockWeights(experts, tensors);
          yield new Matrices(w.w13(), w.w13Scales(), w.w2(), w.w2Scales(), null, null, null);
        }
        default -> {
          TrtllmScaledWeights w =
              new TrtllmScaledWeights(experts, scheme, config.expertBias(), tensors);
          yield new Matrices(
              w.w13(),
              w.w13Scales(),
              w.w2(),
              w.w2Scales(),
              w.b13(),
              w.b2(),
              scheme.hasTensorScales() ? new TrtllmTensorScales(experts, tensors) : null);
        }
      };
    }
  }

  /**
   * One forward's tensors.
   *
   * @param hidden BF16 {@code [T, H]}, or F8_E4M3, or E2m1 as U8 {@code [T, H / 2]}
   * @param hiddenScales as the scheme's input has them, or null
   * @param ids int32 {@code [T, K]}, global; packed with weights where the scheme packs them
   * @param weights F32 {@code [T, K]}; where the scheme packs them BF16, overwritten
   * @param output BF16 {@code [T, H]}, overwritten where the sum is asked for
   */
  record Forward(
      Tensor hidden, @Nullable Tensor hiddenScales, Tensor ids, Tensor weights, Tensor output) {}

  /** Enqueues a forward up to the weighted sum; to be called inside a {@link TvmCall}. */
  void run(Forward f, Layer layer) {
    try {
      run.call(arguments(f, layer, null, true));
    } catch (DeviceException e) {
      throw explained(e);
    }
  }

  /**
   * Enqueues a forward without the weighted sum; to be called inside a {@link TvmCall}.
   *
   * @param delta BF16 {@code [T, K, 2I]}, added before the activation: up, then gate
   * @return what the products wrote, to be closed once everything that reads it is enqueued
   */
  Pairs runPairs(Forward f, Layer layer, Tensor delta) {
    try (TvmArguments a = arguments(f, layer, delta, false).inOrderOf(run.signature())) {
      return new Pairs(module.runtime().array(run.function(), a), f.hidden().memory());
    } catch (DeviceException e) {
      throw explained(e);
    }
  }

  /** With the reason why a kernel was missing, where that is behind it. */
  private static DeviceException explained(DeviceException e) {
    String missing = Cubins.takeFailure();
    return missing == null ? e : new DeviceException(e.getMessage() + "; " + missing, e);
  }

  /** The rows of a forward without its weighted sum, in an order of FlashInfer's. */
  final class Pairs implements AutoCloseable {
    /** What comes back: the second product, weights (which were given), places, activations. */
    private static final int PRODUCT = 0;

    private static final int PLACES = 2;
    private static final int ACTIVATIONS = 3;

    private final TvmObject array;
    private final DeviceId device;
    private final TvmObject product;
    private final TvmObject places;
    private final TvmObject activations;

    private Pairs(TvmObject array, io.moe4j.api.tensor.Memory near) {
      this.array = array;
      this.device = ((io.moe4j.api.tensor.DeviceMemory) near).device();
      TvmObject[] got = new TvmObject[ACTIVATIONS + 1];
      try {
        for (int i : new int[] {PRODUCT, PLACES, ACTIVATIONS}) {
          got[i] = module.runtime().tensorOf(array, i);
        }
      } catch (RuntimeException | Error e) {
        for (TvmObject g : got) {
          if (g != null) {
            g.close();
          }
        }
        array.close();
        throw e;
      }
      product = got[PRODUCT];
      places = got[PLACES];
      activations = got[ACTIVATIONS];
    }

    /** {@return BF16 {@code [rows, H]}, unweighted} */
    Tensor product() {
      return DlTensors.view(product, device);
    }

    /** {@return int32 {@code [T * K]}, the row of each pair, -1 = its expert is not here} */
    Tensor places() {
      return DlTensors.view(places, device);
    }

    /** {@return BF16 {@code [rows, I]}, what the second product read} */
    Tensor activations() {
      return DlTensors.view(activations, device);
    }

    @Override
    public void close() {
      product.close();
      places.close();
      activations.close();
      array.close();
    }
  }

  private NamedArguments arguments(
      Forward f, Layer layer, @Nullable Tensor delta, boolean weightedSum) {
    ExpertBlock block = layer.block();
    Matrices m = layer.matrices();
    TrtllmTensorScales each = m.each();
    return new NamedArguments()
        .integer("routing_input_mode", SEPARATE_IDS)
        .tensor("expert_indices", f.ids())
        .tensor("expert_weights", f.weights())
        .tensor("hidden_states", f.hidden())
        .tensor("hidden_states_scale", f.hiddenScales())
        .tensor("gemm1_weights", m.w13())
        .tensor("gemm1_weights_scale", m.w13Scales())
        .tensor("gemm2_weights", m.w2())
        .tensor("gemm2_weights_scale", m.w2Scales())
        .tensor("gemm1_bias", m.b13())
        .tensor("gemm2_bias", m.b2())
        .tensor("output1_scales_scalar", each == null ? null : each.up())
        .tensor("output1_scales_gate_scalar", each == null ? null : each.gate())
        .tensor("output2_scales_scalar", each == null ? null : each.down())
        .tensor("gemm1_lora_delta", delta)
        .tensor("gemm1_alpha", layer.alpha())
        .tensor("gemm1_beta", layer.beta())
        .tensor("gemm1_clamp_limit", layer.limit())
        .tensor("output", f.output())
        .integer("num_experts", (long) block.local() * block.ranks())
        .integer("top_k", layer.topK())
        .integer("intermediate_size", layer.intermediate())
        .integer("local_expert_offset", (long) block.local() * block.rank())
        .integer("local_num_experts", block.local())
        .integer("routing_method_type", TOPK)
        .bool("use_routing_scales_on_input", false)
        .bool("use_shuffled_weight", scheme.isShuffled())
        .integer("weight_layout", scheme.isInPieces() ? BLOCK_MAJOR_K : MAJOR_K)
        .integer("quantization_type", scheme == TrtllmScheme.FP8_BLOCK ? FP8_BLOCKS : MXFP8)
        .bool("do_finalize", weightedSum)
        .bool("enable_pdl", true)
        .object("moe_tactic", anyTactic)
        .integer("activation_type", SWIGLU)
        .bool("norm_topk_prob", false)
        .object("da_routing_metadata", none)
        .object("da_body_workspace", none)
        .bool("is_da_body_preparation", false);
  }

  @Override
  public void close() {
    run.close();
    anyTactic.close();
    none.close();
  }
}
