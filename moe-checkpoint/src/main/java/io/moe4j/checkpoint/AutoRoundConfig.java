package io.moe4j.checkpoint;

import io.moe4j.checkpoint.QuantRule.Codes;
import io.moe4j.checkpoint.QuantRule.Method;
import java.util.Locale;
import java.util.Optional;
import org.jspecify.annotations.Nullable;

/**
 * The config of AutoRound, whose files have the layout of GPTQ or AWQ. {@code extra_config} has
 * parameters of its own for modules by name or by regex.
 */
final class AutoRoundConfig extends QuantConfig {
  private final ModelConfig config;
  private @Nullable QuantRule base;
  private @Nullable ModulePatterns<QuantRule> extra;

  AutoRoundConfig(String said, ModelConfig config) {
    super(Optional.of(said));
    this.config = config;
  }

  @Override
  synchronized QuantRule rule(String module) {
    QuantRule others = base == null ? read() : base;
    base = others;
    ModulePatterns<QuantRule> rules = extra == null ? readExtra(others) : extra;
    extra = rules;
    return rules.find(module).orElse(others);
  }

  private QuantRule read() {
    String packing = config.optionalString("packing_format").orElse("auto_round:auto_gptq");
    boolean awq = packing.toLowerCase(Locale.ROOT).equals("auto_round:auto_awq");
    if (!awq && !packing.toLowerCase(Locale.ROOT).equals("auto_round:auto_gptq")) {
      throw config.unusable("packing_format", "auto_round:auto_gptq or auto_round:auto_awq");
    }
    if (!config.optionalString("data_type").orElse("int").equals("int")) {
      throw config.unusable("data_type", "int");
    }
    return QuantRule.builder(config.source(), awq ? Method.AWQ : Method.GPTQ)
        .codes(Codes.INT, bits(config, "bits"))
        .group(groupSize(config, "group_size"))
        .symmetric(config.optionalBoolean("sym", true))
        .zeroOffset(awq ? 0 : 1)
        .build();
  }

  private ModulePatterns<QuantRule> readExtra(QuantRule others) {
    ModulePatterns<QuantRule> rules = new ModulePatterns<>(config.source() + " extra_config");
    Optional<ModelConfig> all = config.optionalObject("extra_config");
    if (all.isEmpty()) {
      return rules;
    }
    for (String key : all.get().keys()) {
      Optional<ModelConfig> own = all.get().optionalObject(key);
      if (own.isEmpty() || own.get().optionalInt(4, "bits") > 8) {
        continue; // 16 bits: not quantised
      }
      QuantRule.Builder rule = others.toBuilder();
      if (own.get().has("bits")) {
        rule.codes(Codes.INT, bits(own.get(), "bits"));
      }
      if (own.get().has("group_size")) {
        rule.group(groupSize(own.get(), "group_size"));
      }
      rule.symmetric(own.get().optionalBoolean("sym", others.symmetric()));
      if (key.chars().allMatch(c -> c == '.' || c == '_' || Character.isLetterOrDigit(c))) {
        rules.addName(key, rule.build());
      } else {
        rules.addRegex(key, rule.build());
      }
    }
    return rules;
  }
}
