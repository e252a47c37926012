package io.moe4j.checkpoint;

import io.moe4j.api.CheckpointException;
import io.moe4j.checkpoint.QuantRule.Codes;
import io.moe4j.checkpoint.QuantRule.Method;
import java.util.List;
import java.util.Locale;
import java.util.Optional;
import org.jspecify.annotations.Nullable;

/**
 * The config of GPTQModel, AutoGPTQ and Optimum. {@code dynamic} has parameters of its own for
 * modules whose names begin with what a regex matches; the first that matches counts. A module that
 * a rule leaves out ({@code -:}) and that is quantised all the same has the parameters of the
 * others.
 */
final class GptqConfig extends QuantConfig {
  private final ModelConfig config;
  private @Nullable QuantRule base;
  private @Nullable ModulePatterns<QuantRule> dynamic;

  GptqConfig(String said, ModelConfig config) {
    super(Optional.of(said));
    this.config = config;
  }

  @Override
  synchronized QuantRule rule(String module) {
    QuantRule others = base == null ? read() : base;
    base = others;
    ModulePatterns<QuantRule> rules = dynamic == null ? readDynamic(others) : dynamic;
    dynamic = rules;
    return rules.find(module).orElse(others);
  }

  private QuantRule read() {
    String format = config.optionalString("checkpoint_format", "format").orElse("gptq");
    boolean v2 = format.toLowerCase(Locale.ROOT).equals("gptq_v2");
    if (!v2 && !format.toLowerCase(Locale.ROOT).equals("gptq")) {
      throw config.unusable(
          config.has("checkpoint_format") ? "checkpoint_format" : "format", "gptq or gptq_v2");
    }
    if (config.optionalBoolean("is_marlin_format", false)) {
      throw config.unusable("is_marlin_format", "false; Marlin's own layout is not read here");
    }
    if (!config.optionalString("pack_dtype").orElse("int32").equals("int32")) {
      throw config.unusable("pack_dtype", "int32");
    }
    return QuantRule.builder(config.source(), Method.GPTQ)
        .codes(Codes.INT, bits(config, "bits"))
        .group(groupSize(config, "group_size"))
        .symmetric(config.optionalBoolean("sym", true))
        .actOrder(config.optionalBoolean("desc_act", false))
        .zeroOffset(v2 ? 0 : 1)
        .build();
  }

  private ModulePatterns<QuantRule> readDynamic(QuantRule others) {
    ModulePatterns<QuantRule> rules = new ModulePatterns<>(config.source() + " dynamic");
    Optional<ModelConfig> all = config.optionalObject("dynamic");
    if (all.isEmpty()) {
      return rules;
    }
    for (String key : all.get().keys()) {
      boolean left = key.startsWith("-:");
      String regex = left || key.startsWith("+:") ? key.substring(2) : key;
      rules.addRegex(regex, left ? others : override(others, all.get(), key));
    }
    return rules;
  }

  private QuantRule override(QuantRule others, ModelConfig all, String key) {
    ModelConfig own =
        all.optionalObject(key)
            .orElseThrow(() ->
                new CheckpointException(
                    all.source()
                        + ": '"
                        + StrictJson.shorten(key)
                        + "' is null, must be an object"));
    QuantRule.Builder rule = others.toBuilder();
    if (own.has("bits")) {
      rule.codes(Codes.INT, bits(own, "bits"));
    }
    if (own.has("group_size")) {
      rule.group(groupSize(own, "group_size"));
    }
    for (String format : List.of("checkpoint_format", "format")) {
      if (own.has(format)) {
        throw own.unusable(format, "said for the whole model, not for modules");
      }
    }
    return rule.symmetric(own.optionalBoolean("sym", others.symmetric()))
        .actOrder(own.optionalBoolean("desc_act", others.actOrder()))
        .build();
  }
}
