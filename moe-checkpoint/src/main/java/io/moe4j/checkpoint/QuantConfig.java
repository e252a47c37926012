package io.moe4j.checkpoint;

import io.moe4j.api.CheckpointException;
import io.moe4j.api.config.ActivationQuant;
import io.moe4j.api.config.ActivationQuant.Scaling;
import io.moe4j.api.config.QuantScheme.Format;
import io.moe4j.api.config.QuantScheme.ScaleFormat;
import io.moe4j.checkpoint.QuantRule.Codes;
import io.moe4j.checkpoint.QuantRule.Method;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Collection;
import java.util.List;
import java.util.Locale;
import java.util.Optional;

/**
 * What a checkpoint's config says of quantisation. Whether a module is quantised is for the files
 * to say: published configs contradict them in both directions, and skip lists are read in three
 * ways. From here come the parameters: bits, groups, symmetry, what activations are meant to be.
 *
 * <p>Nothing but the method's name is looked at before a rule is asked for, so that a model whose
 * attention is quantised in a way that is not read here is still a model with plain experts.
 */
abstract class QuantConfig {
  private static final List<String> KEYS = List.of("quantization_config", "compression_config");

  private static final List<String> FILES =
      List.of("hf_quant_config.json", "quantize_config.json", "quant_config.json");

  /** The end of a message that refuses a method. */
  static final String ACCEPTED =
      "; accepted are FP8, compressed-tensors, GPTQ, AWQ (gemm), NVFP4, MXFP4 and MXFP8";

  private final Optional<String> said;

  QuantConfig(Optional<String> said) {
    this.said = said;
  }

  /** What the config calls itself, like {@code quant_method 'gptq'}; empty if it says nothing. */
  final Optional<String> said() {
    return said;
  }

  /**
   * The parameters of a module.
   *
   * @param module its name as the files have it, without {@code .weight}
   * @throws CheckpointException if the config says something that is not read here
   */
  abstract QuantRule rule(String module);

  /**
   * Finds the config.
   *
   * @param directory the checkpoint
   * @param configs its configs, the innermost first
   */
  static QuantConfig find(Path directory, Collection<ModelConfig> configs) {
    for (ModelConfig config : configs) {
      for (String key : KEYS) {
        if (config.has(key)) {
          return config.isObject(key)
              ? of(config.object(key, method(config, key)), method(config, key))
              : fixed(Optional.of(key + " without quant_method"), config.source());
        }
      }
      if (config.has("quantization")) {
        return refusing("'quantization', as MLX writes it", config.source());
      }
    }
    for (String name : FILES) {
      Path file = directory.resolve(name);
      if (Files.exists(file)) {
        ModelConfig config =
            new ModelConfig(
                file.toString(), StrictJson.readObject(file, StrictJson.MAX_CONFIG_BYTES));
        return of(
            config.isObject("quantization")
                ? config.optionalObject("quantization").orElseThrow()
                : config,
            "a file " + name);
      }
    }
    return fixed(
        Optional.empty(),
        configs.stream().map(ModelConfig::source).findFirst().orElse(directory.toString()));
  }

  private static String method(ModelConfig config, String key) {
    return config
        .textIn(key, "quant_method")
        .map(method ->
            "quant_method '"
                + StrictJson.shorten(method)
                + "'"
                + config
                    .textIn(key, "quant_algo")
                    .or(() -> config.textIn(key, "format"))
                    .map(f -> ", '" + StrictJson.shorten(f) + "'")
                    .orElse(""))
        .orElse(key + " without quant_method");
  }

  private static QuantConfig fixed(Optional<String> said, String source) {
    return new QuantConfig(said) {
      @Override
      QuantRule rule(String module) {
        return QuantRule.builder(
                source + " (" + said.orElse("no quantization_config") + ")", Method.NONE)
            .build();
      }
    };
  }

  private static QuantConfig refusing(String said, String source) {
    return new QuantConfig(Optional.of(said)) {
      @Override
      QuantRule rule(String module) {
        throw new CheckpointException(
            source + " says " + said + ", which is not read here" + ACCEPTED);
      }
    };
  }

  private static QuantConfig of(ModelConfig c, String said) {
    String method = c.textAt("quant_method").orElseGet(() -> guess(c)).toLowerCase(Locale.ROOT);
    return switch (method) {
      case "gptq" -> new GptqConfig(said, c);
      case "awq" -> new AwqConfig(said, c);
      case "auto-round", "intel/auto-round" -> new AutoRoundConfig(said, c);
      case "compressed-tensors", "sparseml" -> new CompressedTensorsConfig(said, c);
      case "modelopt", "modelopt_fp4", "modelopt_mixed", "modelopt_mxfp8" ->
          new ModelOptConfig(said, c);
      case "fp8", "fbgemm_fp8", "finegrained_fp8" ->
          new QuantConfig(Optional.of(said)) {
            @Override
            QuantRule rule(String module) {
              return fp8(c);
            }
          };
      case "mxfp4" ->
          new QuantConfig(Optional.of(said)) {
            @Override
            QuantRule rule(String module) {
              return QuantRule.builder(c.source(), Method.MXFP4)
                  .codes(Codes.FLOAT, 4)
                  .group(32)
                  .scaleFormat(ScaleFormat.E8M0)
                  .build();
            }
          };
      case "" -> fixed(Optional.of(said), c.source());
      default -> refusing(said, c.source());
    };
  }

  /** Files of tools that write no quant_method: AutoGPTQ, AutoAWQ, modelopt. */
  private static String guess(ModelConfig c) {
    if (c.has("quant_algo")) {
      return "modelopt";
    }
    if (c.has("config_groups")) {
      return "compressed-tensors";
    }
    if (c.has("w_bit") || c.has("q_group_size") || c.has("zero_point")) {
      return "awq";
    }
    return c.has("bits") ? "gptq" : "";
  }

  private static QuantRule fp8(ModelConfig c) {
    c.optionalString("fmt", "weight_fmt")
        .filter(f -> !f.toLowerCase(Locale.ROOT).startsWith("e4m3"))
        .ifPresent(f -> {
          throw c.unusable(c.has("fmt") ? "fmt" : "weight_fmt", "e4m3");
        });
    QuantRule.Builder rule = QuantRule.builder(c.source(), Method.FP8).codes(Codes.FLOAT, 8);
    Optional<List<Integer>> block = c.optionalInts("weight_block_size");
    if (block.isPresent()) {
      List<Integer> size = block.get();
      if (size.size() != 2 || size.get(0) < 1 || size.get(1) < 1) {
        throw c.unusable("weight_block_size", "two sizes of at least 1, like [128, 128]");
      }
      rule.block(size.get(0), size.get(1));
    }
    return rule.activations(fp8Activations(c, block.map(s -> s.get(1)))).build();
  }

  private static ActivationQuant fp8Activations(ModelConfig c, Optional<Integer> blockColumns) {
    String scheme = c.optionalString("activation_scheme").orElse("dynamic");
    return switch (scheme.toLowerCase(Locale.ROOT)) {
      case "static" -> ActivationQuant.FP8_STATIC;
      case "dynamic" -> {
        boolean powers = c.textAt("scale_fmt").map(f -> f.equals("ue8m0")).orElse(false);
        // Without blocks the scale is meant to be the whole batch's, which no token can know: the
        // engines take each token's.
        yield blockColumns
            .map(columns ->
                new ActivationQuant(
                    Format.FP8,
                    powers ? Scaling.DYNAMIC_PER_GROUP_E8M0 : Scaling.DYNAMIC_PER_GROUP,
                    columns))
            .orElse(ActivationQuant.FP8_PER_TOKEN);
      }
      case "none" -> ActivationQuant.NONE;
      default -> throw c.unusable("activation_scheme", "static or dynamic");
    };
  }

  /** {@code bits}, of those that are read here. */
  static int bits(ModelConfig c, String... names) {
    int bits = c.requireInt(names);
    if (bits != 4 && bits != 8) {
      throw c.unusable(c.first(List.of(names)).orElseThrow().getKey(), "4 or 8");
    }
    return bits;
  }

  /** A group size; -1 = all inputs. */
  static int groupSize(ModelConfig c, String... names) {
    int size = c.requireInteger(-1, names);
    if (size == 0) {
      throw c.unusable(c.first(List.of(names)).orElseThrow().getKey(), "at least 1, or -1 for all");
    }
    return size;
  }
}
