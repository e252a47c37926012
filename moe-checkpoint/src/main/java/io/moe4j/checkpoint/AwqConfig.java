package io.moe4j.checkpoint;

import io.moe4j.checkpoint.QuantRule.Codes;
import io.moe4j.checkpoint.QuantRule.Method;
import java.util.Locale;
import java.util.Optional;

/** The config of AutoAWQ, in the names of transformers and in its own. */
final class AwqConfig extends QuantConfig {
  private final ModelConfig config;

  AwqConfig(String said, ModelConfig config) {
    super(Optional.of(said));
    this.config = config;
  }

  @Override
  QuantRule rule(String module) {
    String version = config.optionalString("version").orElse("gemm");
    if (!version.toLowerCase(Locale.ROOT).equals("gemm")) {
      throw config.unusable(
          "version", "gemm: gemv, gemv_fast, exllama, ipex and marlin are other layouts");
    }
    String backend = config.optionalString("backend").orElse("autoawq");
    if (!backend.toLowerCase(Locale.ROOT).equals("autoawq")) {
      throw config.unusable("backend", "autoawq, which is another layout");
    }
    if (bits(config, "bits", "w_bit") != 4) {
      throw config.unusable(config.has("bits") ? "bits" : "w_bit", "4");
    }
    return QuantRule.builder(config.source(), Method.AWQ)
        .codes(Codes.INT, 4)
        .group(groupSize(config, "group_size", "q_group_size"))
        .symmetric(!config.optionalBoolean("zero_point", true))
        .build();
  }
}
