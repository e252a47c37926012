package io.moe4j.checkpoint;

import io.moe4j.api.config.ActivationQuant;
import io.moe4j.api.config.ActivationQuant.Scaling;
import io.moe4j.api.config.QuantScheme.Format;
import io.moe4j.api.config.QuantScheme.ScaleFormat;
import io.moe4j.checkpoint.QuantRule.Codes;
import io.moe4j.checkpoint.QuantRule.Method;
import io.moe4j.checkpoint.QuantRule.Strategy;
import java.util.LinkedHashMap;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;

/**
 * The config of NVIDIA's modelopt, in config.json or hf_quant_config.json. {@code MIXED_PRECISION}
 * names the algorithm of each module.
 */
final class ModelOptConfig extends QuantConfig {
  private final ModelConfig config;
  private final Map<String, QuantRule> rules = new LinkedHashMap<>();

  ModelOptConfig(String said, ModelConfig config) {
    super(Optional.of(said));
    this.config = config;
  }

  @Override
  synchronized QuantRule rule(String module) {
    ModelConfig at = config;
    Optional<String> algo = config.optionalString("quant_algo");
    if (algo.map(a -> a.equalsIgnoreCase("MIXED_PRECISION")).orElse(false)) {
      Optional<ModelConfig> own =
          config.optionalObject("quantized_layers").flatMap(layers -> own(layers, module));
      if (own.isPresent()) {
        at = own.get();
        algo = at.optionalString("quant_algo");
      } else {
        algo = Optional.empty();
      }
    }
    String name = algo.map(a -> a.toUpperCase(Locale.ROOT)).orElse("");
    ModelConfig from = at;
    String key = name + (from.has("group_size") ? from.requireInteger(-1, "group_size") : "");
    QuantRule known = rules.get(key);
    if (known == null) {
      known = rule(name, from);
      rules.put(key, known);
    }
    return known;
  }

  /** A rule for the module, for what it is in, or for what it is called in another wrapper. */
  private static Optional<ModelConfig> own(ModelConfig layers, String module) {
    for (String name = module; !name.isEmpty(); name = parent(name)) {
      if (layers.isObject(name)) {
        return layers.optionalObject(name);
      }
    }
    return Optional.empty();
  }

  private static String parent(String name) {
    return name.contains(".") ? name.substring(0, name.lastIndexOf('.')) : "";
  }

  private QuantRule rule(String algo, ModelConfig from) {
    QuantRule.Builder rule = QuantRule.builder(config.source(), Method.MODELOPT);
    int group = from.has("group_size") ? groupSize(from, "group_size") : 0;
    return switch (algo) {
      case "" -> rule.build();
      case "FP8" ->
          rule.codes(Codes.FLOAT, 8)
              .scales(Strategy.TENSOR)
              .activations(ActivationQuant.FP8_STATIC)
              .build();
      case "FP8_PER_CHANNEL_PER_TOKEN" ->
          rule.codes(Codes.FLOAT, 8)
              .scales(Strategy.CHANNEL)
              .activations(ActivationQuant.FP8_PER_TOKEN)
              .build();
      case "FP8_PB_WO", "FP8_BLOCK_SCALES" -> rule.codes(Codes.FLOAT, 8).block(128, 128).build();
      case "NVFP4", "NVFP4_MLP_ONLY", "W4A4_NVFP4" ->
          rule.codes(Codes.FLOAT, 4)
              .group(group > 0 ? group : 16)
              .scaleFormat(ScaleFormat.E4M3)
              .activations(
                  new ActivationQuant(
                      Format.FP4, Scaling.STATIC_AND_PER_GROUP, group > 0 ? group : 16))
              .build();
      case "W4A16_NVFP4" ->
          rule.codes(Codes.FLOAT, 4)
              .group(group > 0 ? group : 16)
              .scaleFormat(ScaleFormat.E4M3)
              .build();
      case "MXFP8" ->
          rule.codes(Codes.FLOAT, 8)
              .group(32)
              .scaleFormat(ScaleFormat.E8M0)
              .activations(new ActivationQuant(Format.FP8, Scaling.DYNAMIC_PER_GROUP_E8M0, 32))
              .build();
      case "MXFP4", "W4A16_MXFP4" ->
          rule.codes(Codes.FLOAT, 4).group(32).scaleFormat(ScaleFormat.E8M0).build();
      default ->
          throw from.unusable(
              "quant_algo",
              "FP8, FP8_PER_CHANNEL_PER_TOKEN, FP8_PB_WO, NVFP4, W4A16_NVFP4, MXFP4, MXFP8 or"
                  + " MIXED_PRECISION");
    };
  }
}
