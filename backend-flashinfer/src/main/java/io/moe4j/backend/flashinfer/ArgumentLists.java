package io.moe4j.backend.flashinfer;

import java.util.List;
import java.util.stream.Stream;

/**
 * The argument lists of FlashInfer's functions, by version, read from its tagged sources.
 * FlashInfer promises nothing about them, so a version that is not in the table is refused, and of
 * one that is, each function is asked for its arguments before it is used ({@link
 * Signature#match}): releases called 0.6.16 and 0.6.18 differ among themselves.
 *
 * <table>
 * <caption>Numbers of arguments</caption>
 * <tr><th>FlashInfer</th><th>init</th><th>run_moe</th><th>workspace and tactics of fused_moe</th>
 *   <th>trtllm_bf16_moe, _fp8_block_scale_moe, _fp4_block_scale_moe,
 *   _fp8_per_tensor_scale_routed_moe, _mxint4_block_scale_moe</th></tr>
 * <tr><td>0.6.0 to 0.6.7</td><td>7</td><td>24</td><td>memory by the allocator</td><td>refused</td></tr>
 * <tr><td>0.6.8 to 0.6.14</td><td>7</td><td>25</td><td>the same</td><td>refused</td></tr>
 * <tr><td>0.6.15</td><td>8</td><td>25</td><td>the same</td><td>refused</td></tr>
 * <tr><td>0.6.16, 0.6.17</td><td>8 or 9</td><td>26</td><td>given; valid tactics where init has 9</td><td>refused</td></tr>
 * <tr><td>0.6.18</td><td>9</td><td>26 or 28</td><td>given; valid tactics</td><td>33, 38, 41, 30, 31</td></tr>
 * </table>
 */
final class ArgumentLists {
  static final int FIRST_PATCH = 0;
  static final int LAST_PATCH = 18;

  /** Before it, {@code trtllm_bf16_moe} takes no ids and weights apart, which LoRA needs. */
  static final int TRTLLM_FIRST_PATCH = 18;

  private static final Signature INIT_7 =
      Signature.of(
          "init",
          """
          activation_dtype:dt weight_dtype:dt output_dtype:dt use_deepseek_fp8_block_scale:b
          use_w4_group_scaling:b use_mxfp8_act_scaling:b use_packed_weights:b
          """);
  private static final Signature INIT_8 = INIT_7.withLast("use_fused_finalize:b");
  private static final Signature INIT_9 = INIT_8.withLast("use_wfp4afp8_humming:b");

  private static final Signature RUN_MOE_24 =
      Signature.of(
          "run_moe",
          """
          output:T input:T token_selected_experts:T token_final_scales:T? fc1_expert_weights:T
          fc1_expert_biases:T? fc2_expert_weights:T fc2_expert_biases:T? quant_scales:T[]?
          input_sf:T? swiglu_alpha:T? swiglu_beta:T? swiglu_limit:T? tp_size:i tp_rank:i ep_size:i
          ep_rank:i cluster_size:i cluster_rank:i enable_alltoall:b min_latency_mode:b
          profile_ids:i[]? enable_pdl:b base_activation_type:i
          """);
  private static final Signature RUN_MOE_25 =
      RUN_MOE_24.with("swizzled_input_sf:b", "swiglu_limit");
  private static final Signature RUN_MOE_26 = RUN_MOE_25.withLast("workspace_buffer:T?");
  private static final Signature RUN_MOE_28 =
      RUN_MOE_26.with("situ_beta:T? situ_linear_beta:T?", "swiglu_limit");

  private static final Signature TRTLLM_BF16_33 =
      Signature.of(
          "trtllm_bf16_moe",
          """
          routing_input_mode:i routing_logits:T? routing_bias:T? expert_indices:T expert_weights:T hidden_states:T
          gemm1_weights:T gemm2_weights:T gemm1_lora_delta:T? gemm1_alpha:T? gemm1_beta:T?
          gemm1_clamp_limit:T? output:T num_experts:i top_k:i n_group:i? topk_group:i?
          intermediate_size:i local_expert_offset:i local_num_experts:i routed_scaling_factor:f?
          routing_method_type:i use_shuffled_weight:b weight_layout:i do_finalize:b enable_pdl:b
          moe_tactic:i[] activation_type:i norm_topk_prob:b routing_replay_out:T?
          da_routing_metadata:T[] da_body_workspace:T[] is_da_body_preparation:b
          """);

  /** Ids, weights, tactic and activation have other names in FlashInfer here. */
  private static final Signature TRTLLM_FP8_38 =
      Signature.of(
          "trtllm_fp8_block_scale_moe",
          """
          routing_input_mode:i routing_logits:T? expert_indices:T expert_weights:T routing_bias:T?
          hidden_states:T hidden_states_scale:T gemm1_weights:T gemm1_weights_scale:T
          gemm1_lora_delta:T? gemm1_alpha:T? gemm1_beta:T? gemm1_clamp_limit:T? gemm2_weights:T
          gemm2_weights_scale:T output:T num_experts:i top_k:i num_fused_shared_experts:i?
          n_group:i? topk_group:i? intermediate_size:i local_expert_offset:i local_num_experts:i
          routed_scaling_factor:f? routing_method_type:i use_shuffled_weight:b weight_layout:i
          do_finalize:b enable_pdl:b moe_tactic:i[] quantization_type:i activation_type:i
          norm_topk_prob:b routing_replay_out:T? da_routing_metadata:T[] da_body_workspace:T[]
          is_da_body_preparation:b
          """);

  private static final Signature TRTLLM_FP4_41 =
      Signature.of(
          "trtllm_fp4_block_scale_moe",
          """
          routing_input_mode:i routing_logits:T? expert_indices:T expert_weights:T routing_bias:T?
          hidden_states:T hidden_states_scale:T? gemm1_weights:T gemm1_weights_scale:T
          gemm1_bias:T? gemm1_lora_delta:T? gemm1_alpha:T? gemm1_beta:T? gemm1_clamp_limit:T?
          gemm2_weights:T gemm2_weights_scale:T gemm2_bias:T? output1_scales_scalar:T?
          output1_scales_gate_scalar:T? output2_scales_scalar:T? per_token_scales:T? num_experts:i
          top_k:i num_fused_shared_experts:i? n_group:i? topk_group:i? intermediate_size:i
          local_expert_offset:i local_num_experts:i routed_scaling_factor:f? routing_method_type:i
          do_finalize:b enable_pdl:b activation_type:i output:T moe_tactic:i[] norm_topk_prob:b
          routing_replay_out:T? da_routing_metadata:T[] da_body_workspace:T[]
          is_da_body_preparation:b
          """);

  /** Scales stand in front of the matrices' results: of up and the output, of gate, of down. */
  private static final Signature TRTLLM_FP8_TENSOR_30 =
      Signature.of(
          "trtllm_fp8_per_tensor_scale_routed_moe",
          """
          routing_input_mode:i expert_indices:T expert_weights:T routing_bias:T? hidden_states:T
          gemm1_weights:T output1_scales_scalar:T output1_scales_gate_scalar:T gemm2_weights:T
          output2_scales_scalar:T output:T num_experts:i top_k:i n_group:i? topk_group:i?
          intermediate_size:i local_expert_offset:i local_num_experts:i routed_scaling_factor:f?
          use_routing_scales_on_input:b routing_method_type:i do_finalize:b enable_pdl:b
          moe_tactic:i[] activation_type:i norm_topk_prob:b routing_replay_out:T?
          da_routing_metadata:T[] da_body_workspace:T[] is_da_body_preparation:b
          """);

  /** No mode of routing: ids are packed with their weights, {@code expert_weights} is written. */
  private static final Signature TRTLLM_MXINT4_31 =
      Signature.of(
          "trtllm_mxint4_block_scale_moe",
          """
          routing_logits:T? routing_bias:T? expert_indices:T expert_weights:T hidden_states:T
          gemm1_weights:T gemm1_weights_scale:T gemm1_alpha:T? gemm1_beta:T? gemm1_clamp_limit:T?
          gemm1_lora_delta:T? gemm2_weights:T gemm2_weights_scale:T num_experts:i top_k:i
          n_group:i? topk_group:i? intermediate_size:i local_expert_offset:i local_num_experts:i
          routed_scaling_factor:f? routing_method_type:i do_finalize:b enable_pdl:b output:T
          moe_tactic:i[] norm_topk_prob:b routing_replay_out:T? da_routing_metadata:T[]
          da_body_workspace:T[] is_da_body_preparation:b
          """);

  static final Signature WORKSPACE_SIZE =
      Signature.of(
          "get_workspace_size",
          """
          num_rows:i hidden_size:i inter_size:i num_experts_total:i experts_per_token:i tp_size:i
          tp_rank:i ep_size:i ep_rank:i min_latency_mode:b base_activation_type:i
          """);
  static final Signature VALID_TACTICS =
      Signature.of("get_valid_tactics_for_shape", "stage:i gemm_n:i gemm_k:i");
  static final Signature OCCUPANCY = Signature.of("get_tactic_occupancy", "tactic_id:i");
  static final Signature HEADERS =
      Signature.of("set_deepgemm_jit_include_dirs", "include_dirs:s[]");
  static final Signature INTERLEAVE =
      Signature.of(
          "interleave_moe_weights_for_sm90_mixed_gemm",
          "weight:T weight_interleaved:T quant_type:i");

  /** Lists that the versions from one patch of 0.6 to another may have. */
  private record Row(int first, int last, List<Signature> lists) {
    Row(int first, int last, Signature... lists) {
      this(first, last, List.of(lists));
    }
  }

  private static final List<Row> ROWS =
      List.of(
          new Row(0, 7, INIT_7, RUN_MOE_24),
          new Row(8, 14, INIT_7, RUN_MOE_25),
          new Row(15, 15, INIT_8, RUN_MOE_25),
          new Row(16, 17, INIT_8, INIT_9, RUN_MOE_26),
          new Row(
              18,
              18,
              INIT_9,
              RUN_MOE_26,
              RUN_MOE_28,
              TRTLLM_BF16_33,
              TRTLLM_FP8_38,
              TRTLLM_FP4_41,
              TRTLLM_FP8_TENSOR_30,
              TRTLLM_MXINT4_31));

  private ArgumentLists() {}

  /** {@return whether any row is for the version} */
  static boolean knows(FlashInferVersion version) {
    return !version.development() && rows(version).findAny().isPresent();
  }

  /** {@return the lists that a function of a version may have; empty = none is known} */
  static List<Signature> of(String function, FlashInferVersion version) {
    return rows(version)
        .flatMap(r -> r.lists().stream())
        .filter(s -> s.function().equals(function))
        .toList();
  }

  private static Stream<Row> rows(FlashInferVersion version) {
    return ROWS.stream().filter(r -> version.isBetween(r.first(), r.last()));
  }

  /** {@return the reason for refusing a version} */
  static String whyUnknown(String version) {
    return "FlashInfer "
        + version
        + " is not known to this moe4j, which knows the argument lists of 0.6."
        + FIRST_PATCH
        + " to 0.6."
        + LAST_PATCH;
  }
}
