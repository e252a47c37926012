package io.moe4j.checkpoint;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.config.RoutingConfig.GroupScore;
import io.moe4j.api.config.RoutingConfig.Scoring;
import io.moe4j.checkpoint.CheckpointLayout.FusedParameter;
import io.moe4j.checkpoint.CheckpointLayout.FusedParameter.Kind;
import io.moe4j.checkpoint.CheckpointLayout.Rules;
import io.moe4j.checkpoint.ExpertForm.Orientation;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/**
 * The families that are known by name. Keys, shapes and rules are those of Hugging Face
 * transformers 5.17; defaults of absent config keys are those of its config classes.
 */
final class KnownLayouts {
  private static final String GATE_UP = "experts.gate_up_proj";
  private static final String DOWN = "experts.down_proj";

  private KnownLayouts() {}

  /** All of them, by model_type. */
  static Map<String, CheckpointLayout> all() {
    Map<String, CheckpointLayout> byType = new LinkedHashMap<>();
    CheckpointLayout deepseekV3 =
        gated("deepseek_v3", "layers.{L}.mlp")
            .correctionBias("gate.e_score_correction_bias")
            .sharedExpert("shared_experts", "shared_expert")
            .rules(new DeepseekV3Rules(8, 4, 2.5f, 3))
            .build();
    CheckpointLayout qwen2 =
        gated("qwen2_moe", "layers.{L}.mlp")
            .sharedExpert("shared_expert", "shared_experts")
            .sharedExpertGate("shared_expert_gate")
            .rules(new QwenRules(false))
            .build();
    for (CheckpointLayout layout :
        List.of(
            gated("qwen3_moe", "layers.{L}.mlp").rules(new QwenRules(false)).build(),
            qwen2,
            // The same block under another attention; weights are renormalised where no key says.
            qwen2.toBuilder("qwen3_next").rules(new QwenRules(true)).build(),
            gated("olmoe", "layers.{L}.mlp").rules(new OlmoeRules()).build(),
            deepseekV3,
            // DeepSeek-V3's architecture under another name.
            deepseekV3.toBuilder("kimi_k2").build(),
            // The same block; the defaults of absent keys differ.
            deepseekV3.toBuilder("glm4_moe").rules(new DeepseekV3Rules(1, 1, 1f, 1)).build(),
            gated("deepseek_v2", "layers.{L}.mlp")
                .sharedExpert("shared_experts", "shared_expert")
                .rules(new DeepseekV2Rules())
                .build(),
            mixtralLike("mixtral").rules(new MixtralRules()).build(),
            mixtralLike("phimoe").rules(new PhimoeRules()).build(),
            gptOss(),
            llama4(),
            graniteMoe(),
            nemotronH())) {
      byType.put(layout.modelType(), layout);
    }
    return byType;
  }

  private static CheckpointLayout.Builder gated(String modelType, String block) {
    return fused(CheckpointLayout.builder(modelType).block(block), Orientation.OUT_IN, false)
        .perExpert("experts.{E}.gate_proj", "experts.{E}.up_proj", "experts.{E}.down_proj")
        .stacked(GATE_UP, DOWN, Orientation.OUT_IN, GateUpLayout.HALVES)
        .router("gate.weight");
  }

  private static CheckpointLayout.Builder fused(
      CheckpointLayout.Builder builder, Orientation orientation, boolean isTransposed) {
    return builder
        .fusedParameter(new FusedParameter("gate_up_proj", Kind.GATE_UP, orientation, isTransposed))
        .fusedParameter(new FusedParameter("down_proj", Kind.DOWN, orientation, isTransposed));
  }

  /** Files say block_sparse_moe, the modelling code (and files in its own format) say mlp. */
  private static CheckpointLayout.Builder mixtralLike(String modelType) {
    return fused(
            CheckpointLayout.builder(modelType).block("layers.{L}.block_sparse_moe"),
            Orientation.OUT_IN,
            false)
        .block("layers.{L}.mlp")
        .perExpert("experts.{E}.w1", "experts.{E}.w3", "experts.{E}.w2")
        .stacked(GATE_UP, DOWN, Orientation.OUT_IN, GateUpLayout.HALVES)
        .router("gate.weight", "router.weight");
  }

  private static CheckpointLayout gptOss() {
    return CheckpointLayout.builder("gpt_oss")
        .block("layers.{L}.mlp")
        .form(
            new ExpertForm.Stacked(
                GATE_UP,
                DOWN,
                Optional.of("experts.gate_up_proj_bias"),
                Optional.of("experts.down_proj_bias"),
                Orientation.IN_OUT,
                GateUpLayout.INTERLEAVED))
        .form(
            new ExpertForm.Mxfp4Stacked(
                GATE_UP,
                DOWN,
                Optional.of("experts.gate_up_proj_bias"),
                Optional.of("experts.down_proj_bias"),
                GateUpLayout.INTERLEAVED))
        .router("router.weight")
        .routerBias("router.bias")
        .fusedParameter(new FusedParameter("gate_up_proj", Kind.GATE_UP, Orientation.IN_OUT, true))
        .fusedParameter(
            new FusedParameter("gate_up_proj_bias", Kind.BIAS, Orientation.IN_OUT, true))
        .fusedParameter(new FusedParameter("down_proj", Kind.DOWN, Orientation.IN_OUT, true))
        .fusedParameter(new FusedParameter("down_proj_bias", Kind.BIAS, Orientation.IN_OUT, true))
        .rules((config, layer) ->
            // hidden_act says silu; alpha 1.702 and limit 7 are constants of the modelling code.
            sizes(config, "intermediate_size")
                .activation(Activation.SWIGLUOAI)
                .routing(RoutingConfig.SOFTMAX_TOPK))
        .build();
  }

  private static CheckpointLayout llama4() {
    return fused(
            CheckpointLayout.builder("llama4_text").block("layers.{L}.feed_forward"),
            Orientation.IN_OUT,
            false)
        .stacked(GATE_UP, DOWN, Orientation.IN_OUT, GateUpLayout.HALVES)
        .router("router.weight")
        .sharedExpert("shared_expert", "shared_experts")
        .rules(new Llama4Rules())
        .build();
  }

  private static CheckpointLayout graniteMoe() {
    return fused(
            CheckpointLayout.builder("granitemoe").block("layers.{L}.block_sparse_moe"),
            Orientation.OUT_IN,
            false)
        .stacked(
            "input_linear.weight", "output_linear.weight", Orientation.OUT_IN, GateUpLayout.HALVES)
        .stacked(GATE_UP, DOWN, Orientation.OUT_IN, GateUpLayout.HALVES)
        .router("router.layer.weight", "router.weight")
        .rules((config, layer) ->
            sizes(config, "intermediate_size")
                .activation(ActivationNames.gated(config, "hidden_act"))
                .routing(RoutingConfig.SOFTMAX_TOPK))
        .build();
  }

  private static CheckpointLayout nemotronH() {
    return CheckpointLayout.builder("nemotron_h")
        .block("layers.{L}.mixer")
        .perExpert("experts.{E}.up_proj", "experts.{E}.down_proj")
        .stacked("experts.up_proj", DOWN, Orientation.OUT_IN, GateUpLayout.HALVES)
        .router("gate.weight")
        .correctionBias("gate.e_score_correction_bias")
        .sharedExpert("shared_experts", "shared_expert")
        .latent("fc1_latent_proj", "fc2_latent_proj")
        .fusedParameter(new FusedParameter("up_proj", Kind.UP, Orientation.OUT_IN, false))
        .fusedParameter(new FusedParameter("down_proj", Kind.DOWN, Orientation.OUT_IN, false))
        .rules(new NemotronHRules())
        .build();
  }

  private static MoeConfig.Builder sizes(ModelConfig config, String intermediateSize) {
    return MoeConfig.builder(
        config.requireInt("hidden_size"),
        config.requireInt(intermediateSize),
        config.requireInt("num_experts", "num_local_experts", "n_routed_experts"),
        config.requireInt("num_experts_per_tok"));
  }

  /** qwen2_moe, qwen3_moe, qwen3_next, with what an absent norm_topk_prob means. */
  private record QwenRules(boolean renormalize) implements Rules {
    @Override
    public MoeConfig.Builder block(ModelConfig config, int layer) {
      return sizes(config, "moe_intermediate_size")
          .activation(ActivationNames.gated(config, "hidden_act"))
          .routing(
              RoutingConfig.of(
                  Scoring.SOFTMAX, config.optionalBoolean("norm_topk_prob", renormalize)));
    }

    @Override
    public boolean isMoeLayer(ModelConfig config, int layer) {
      int step = Math.max(1, config.optionalInt(1, "decoder_sparse_step"));
      boolean dense = config.optionalInts("mlp_only_layers").orElse(List.of()).contains(layer);
      return !dense && (layer + 1) % step == 0;
    }
  }

  private static final class OlmoeRules implements Rules {
    @Override
    public MoeConfig.Builder block(ModelConfig config, int layer) {
      return sizes(config, "intermediate_size")
          .activation(ActivationNames.gated(config, "hidden_act"))
          .routing(
              RoutingConfig.of(Scoring.SOFTMAX, config.optionalBoolean("norm_topk_prob", false)));
    }
  }

  private static final class MixtralRules implements Rules {
    @Override
    public MoeConfig.Builder block(ModelConfig config, int layer) {
      return sizes(config, "intermediate_size")
          .activation(ActivationNames.gated(config, "hidden_act"))
          .routing(RoutingConfig.SOFTMAX_RENORMALIZE);
    }
  }

  private static final class PhimoeRules implements Rules {
    @Override
    public MoeConfig.Builder block(ModelConfig config, int layer) {
      return sizes(config, "intermediate_size")
          .activation(ActivationNames.gated(config, "hidden_act"))
          .routing(RoutingConfig.sparseMixer(config.optionalFloat("router_jitter_noise", 0.01f)));
    }
  }

  /** deepseek_v3 and models of the same block, with what absent keys mean. */
  private record DeepseekV3Rules(int numGroups, int topkGroups, float scalingFactor, int firstDense)
      implements Rules {
    @Override
    public MoeConfig.Builder block(ModelConfig config, int layer) {
      requireString(config, "scoring_func", "sigmoid");
      requireString(config, "topk_method", "noaux_tc");
      return sizes(config, "moe_intermediate_size")
          .activation(ActivationNames.gated(config, "hidden_act"))
          .routing(
              RoutingConfig.deepseekV3(
                  config.optionalInt(numGroups, "n_group"),
                  config.optionalInt(topkGroups, "topk_group"),
                  config.optionalBoolean("norm_topk_prob", true),
                  config.optionalFloat("routed_scaling_factor", scalingFactor)));
    }

    @Override
    public boolean isMoeLayer(ModelConfig config, int layer) {
      return deepseekMoeLayer(config, layer, firstDense);
    }
  }

  private static final class DeepseekV2Rules implements Rules {
    @Override
    public MoeConfig.Builder block(ModelConfig config, int layer) {
      requireString(config, "scoring_func", "softmax");
      if (config.optionalBoolean("norm_topk_prob", false)) {
        // The published code renormalises then, transformers does not: no one right answer.
        throw config.unusable("norm_topk_prob", "false");
      }
      String method = config.optionalString("topk_method").orElse("greedy");
      boolean groups = method.equals("group_limited_greedy");
      if (!groups && !method.equals("greedy")) {
        throw config.unusable("topk_method", "greedy or group_limited_greedy");
      }
      return sizes(config, "moe_intermediate_size")
          .activation(ActivationNames.gated(config, "hidden_act"))
          .routing(
              RoutingConfig.builder(Scoring.SOFTMAX)
                  .scalingFactor(config.optionalFloat("routed_scaling_factor", 1f))
                  .groups(
                      groups ? config.requireInt("n_group") : 1,
                      groups ? config.requireInt("topk_group") : 1,
                      GroupScore.MAX)
                  .build());
    }

    @Override
    public boolean isMoeLayer(ModelConfig config, int layer) {
      return deepseekMoeLayer(config, layer, 0);
    }
  }

  private static boolean deepseekMoeLayer(ModelConfig config, int layer, int denseByDefault) {
    int frequency = Math.max(1, config.optionalInt(1, "moe_layer_freq"));
    return layer >= config.optionalInt(denseByDefault, "first_k_dense_replace")
        && layer % frequency == 0;
  }

  private static void requireString(ModelConfig config, String key, String accepted) {
    if (!config.optionalString(key).orElse(accepted).equals(accepted)) {
      throw config.unusable(key, accepted);
    }
  }

  private static final class Llama4Rules implements Rules {
    @Override
    public MoeConfig.Builder block(ModelConfig config, int layer) {
      return sizes(config, "intermediate_size")
          .activation(ActivationNames.gated(config, "hidden_act"))
          .routing(RoutingConfig.SIGMOID)
          .routerWeightOnInput(true);
    }

    @Override
    public boolean isMoeLayer(ModelConfig config, int layer) {
      int step = Math.max(1, config.optionalInt(1, "interleave_moe_layer_step"));
      return config
          .optionalInts("moe_layers")
          .map(layers -> layers.contains(layer))
          .orElse((layer + 1) % step == 0);
    }
  }

  private static final class NemotronHRules implements Rules {
    @Override
    public MoeConfig.Builder block(ModelConfig config, int layer) {
      return sizes(config, "moe_intermediate_size")
          .activation(ActivationNames.ungated(config, "mlp_hidden_act", "relu2"))
          .routing(
              RoutingConfig.deepseekV3(
                  config.optionalInt(1, "n_group"),
                  config.optionalInt(1, "topk_group"),
                  config.optionalBoolean("norm_topk_prob", true),
                  config.optionalFloat("routed_scaling_factor", 1f)))
          .latentSize(config.optionalInt(0, "moe_latent_size"));
    }

    @Override
    public boolean isMoeLayer(ModelConfig config, int layer) {
      Optional<List<String>> types = types(config);
      if (types.isPresent()) {
        return layer < types.get().size() && types.get().get(layer).equals("moe");
      }
      String pattern = config.optionalString("hybrid_override_pattern").orElse("");
      return layer < pattern.length() && pattern.charAt(layer) == 'E';
    }

    @Override
    public int numLayers(ModelConfig config) {
      Optional<List<String>> types = types(config);
      if (types.isPresent()) {
        return types.get().size();
      }
      return config
          .optionalString("hybrid_override_pattern")
          .map(String::length)
          .orElseGet(() -> config.requireInt("num_hidden_layers"));
    }

    private static Optional<List<String>> types(ModelConfig config) {
      return config.optionalStrings(
          config.has("layers_block_type") ? "layers_block_type" : "layer_types");
    }
  }
}
