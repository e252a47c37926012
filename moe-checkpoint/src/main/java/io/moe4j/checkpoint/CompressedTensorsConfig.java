package io.moe4j.checkpoint;

import io.moe4j.api.CheckpointException;
import io.moe4j.api.config.ActivationQuant;
import io.moe4j.api.config.ActivationQuant.Scaling;
import io.moe4j.api.config.QuantScheme.Format;
import io.moe4j.api.config.QuantScheme.ScaleFormat;
import io.moe4j.checkpoint.QuantRule.Codes;
import io.moe4j.checkpoint.QuantRule.Method;
import io.moe4j.checkpoint.QuantRule.Strategy;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.Optional;
import java.util.Set;
import org.jspecify.annotations.Nullable;

/**
 * The config of compressed-tensors: groups of modules with the parameters of their weights and
 * activations. The first group counts that targets a module, by its name, by a regex, or by its
 * class, of which the linear ones are all that have quantised weights.
 */
final class CompressedTensorsConfig extends QuantConfig {
  private static final Set<String> FORMATS =
      Set.of(
          "pack-quantized",
          "int-quantized",
          "float-quantized",
          "naive-quantized",
          "nvfp4-pack-quantized",
          "mxfp4-pack-quantized",
          "mxfp8-quantized",
          "mixed-precision",
          "dense");

  private static final String BLOCK_ACCEPTED = "two sizes of at least 1, like [128, 128]";

  private final ModelConfig config;
  private @Nullable Groups groups;

  /**
   * What was read.
   *
   * @param only the one group, which has every module, whatever its targets say
   * @param all by class, name or regex
   */
  private record Groups(Optional<QuantRule> only, ModulePatterns<QuantRule> all) {}

  CompressedTensorsConfig(String said, ModelConfig config) {
    super(Optional.of(said));
    this.config = config;
  }

  @Override
  synchronized QuantRule rule(String module) {
    Groups read = groups == null ? read() : groups;
    groups = read;
    return read.only()
        .or(() -> read.all().find(module))
        .orElseThrow(() ->
            new CheckpointException(
                "'"
                    + StrictJson.shorten(module)
                    + "' is quantised, but none of the config_groups of "
                    + config.source()
                    + " targets it"));
  }

  private Groups read() {
    requireFormat(config);
    config
        .optionalObject("transform_config")
        .flatMap(t -> t.optionalObject("config_groups"))
        .filter(t -> !t.keys().isEmpty())
        .ifPresent(t -> {
          throw config.unusable(
              "transform_config",
              "without config_groups: transforms of activations are not read here");
        });
    ModelConfig named =
        config
            .optionalObject("config_groups")
            .orElseThrow(() -> new CheckpointException(config.source() + " lacks 'config_groups'"));
    List<QuantRule> rules = new ArrayList<>();
    ModulePatterns<QuantRule> all = new ModulePatterns<>(config.source() + " targets");
    for (String name : named.keys()) {
      Optional<ModelConfig> group = named.optionalObject(name);
      Optional<ModelConfig> weights = group.flatMap(g -> g.optionalObject("weights"));
      if (group.isEmpty() || weights.isEmpty()) {
        continue;
      }
      requireFormat(group.get());
      QuantRule rule = rule(group.get(), weights.get());
      rules.add(rule);
      for (String target : group.get().optionalStrings("targets").orElse(List.of())) {
        if (target.startsWith("re:")) {
          all.addRegex(target.substring(3), rule);
        } else if (target.endsWith("Linear")) {
          all.addRegex("", rule);
        } else {
          all.addName(target, rule);
        }
      }
    }
    return new Groups(rules.size() == 1 ? Optional.of(rules.getFirst()) : Optional.empty(), all);
  }

  private static void requireFormat(ModelConfig c) {
    c.optionalString("format")
        .filter(f -> !FORMATS.contains(f))
        .ifPresent(f -> {
          throw c.unusable(
              "format", "one of " + String.join(", ", FORMATS.stream().sorted().toList()));
        });
  }

  private QuantRule rule(ModelConfig group, ModelConfig w) {
    String format =
        group.optionalString("format").or(() -> config.optionalString("format")).orElse("");
    Codes type = codes(w);
    int bits = w.requireInt("num_bits");
    QuantRule.Builder rule =
        QuantRule.builder(config.source(), Method.COMPRESSED_TENSORS)
            .codes(type, bits)
            .symmetric(w.optionalBoolean("symmetric", true))
            .actOrder(isGrouped(w))
            .scaleFormat(scaleFormat(format, w, type))
            .activations(
                group
                    .optionalObject("input_activations")
                    .map(CompressedTensorsConfig::activations)
                    .orElse(ActivationQuant.NONE));
    switch (strategy(w)) {
      case "tensor" -> rule.scales(Strategy.TENSOR);
      case "channel" -> rule.scales(Strategy.CHANNEL);
      case "group", "tensor_group" -> rule.group(groupSize(w, "group_size"));
      case "block" -> {
        int[] block = block(w);
        rule.block(block[0], block[1]);
      }
      default -> throw w.unusable("strategy", "tensor, channel, group, tensor_group or block");
    }
    return rule.build();
  }

  private static Codes codes(ModelConfig c) {
    return switch (c.optionalString("type").orElse("int")) {
      case "int" -> Codes.INT;
      case "float" -> Codes.FLOAT;
      default -> throw c.unusable("type", "int or float");
    };
  }

  private static String strategy(ModelConfig c) {
    Optional<String> strategy = c.optionalString("strategy");
    if (strategy.isPresent()) {
      return strategy.get().toLowerCase(Locale.ROOT);
    }
    if (!c.has("group_size")) {
      return "tensor";
    }
    return groupSize(c, "group_size") < 0 ? "channel" : "group";
  }

  /** {@code actorder}: only "group" (once "dynamic", and true) leaves a group index behind. */
  private static boolean isGrouped(ModelConfig w) {
    if (!w.has("actorder")) {
      return false;
    }
    Optional<String> order = w.textAt("actorder").map(o -> o.toLowerCase(Locale.ROOT));
    if (order.isEmpty()) {
      return w.optionalBoolean("actorder", false);
    }
    return switch (order.get()) {
      case "group", "dynamic" -> true;
      case "weight", "static" -> false;
      default -> throw w.unusable("actorder", "group, weight, dynamic, static or null");
    };
  }

  private static ScaleFormat scaleFormat(String format, ModelConfig w, Codes type) {
    if (format.startsWith("mxfp")) {
      return ScaleFormat.E8M0;
    }
    if (format.startsWith("nvfp4")) {
      return ScaleFormat.E4M3;
    }
    String dtype = w.textAt("scale_dtype").orElse("");
    if (type == Codes.FLOAT && dtype.endsWith("uint8")) {
      return ScaleFormat.E8M0;
    }
    return strategy(w).equals("tensor_group") ? ScaleFormat.E4M3 : ScaleFormat.FLOAT;
  }

  private static int[] block(ModelConfig w) {
    Optional<List<Integer>> sizes =
        w.textAt("block_structure").isPresent()
            ? w.textAt("block_structure").map(t -> sizes(w, t))
            : w.optionalInts("block_structure");
    if (sizes.isEmpty()
        || sizes.get().size() != 2
        || sizes.get().get(0) < 1
        || sizes.get().get(1) < 1) {
      throw w.unusable("block_structure", BLOCK_ACCEPTED);
    }
    return new int[] {sizes.get().get(0), sizes.get().get(1)};
  }

  /** Old files have {@code "128x128"}. */
  private static List<Integer> sizes(ModelConfig w, String text) {
    if (!text.matches("[0-9]{1,9}x[0-9]{1,9}")) {
      throw w.unusable("block_structure", BLOCK_ACCEPTED);
    }
    return Arrays.stream(text.split("x", -1)).map(Integer::valueOf).toList();
  }

  private static ActivationQuant activations(ModelConfig a) {
    int bits = a.requireInt("num_bits");
    boolean integer = codes(a) == Codes.INT;
    if (bits != 8 && bits != 4) {
      throw a.unusable("num_bits", "4 or 8");
    }
    Format format =
        bits == 8 ? (integer ? Format.INT8 : Format.FP8) : integer ? Format.INT4 : Format.FP4;
    String strategy = strategy(a);
    boolean local = a.textAt("dynamic").map(d -> d.equalsIgnoreCase("local")).orElse(false);
    if (local) {
      return new ActivationQuant(
          format, Scaling.STATIC_AND_PER_GROUP, Math.max(1, groupSize(a, "group_size")));
    }
    if (!a.optionalBoolean("dynamic", false)) {
      return new ActivationQuant(format, Scaling.STATIC, 0);
    }
    if (strategy.equals("group") || strategy.equals("tensor_group")) {
      int size = groupSize(a, "group_size");
      boolean powers = a.textAt("scale_dtype").map(d -> d.endsWith("uint8")).orElse(false);
      return size < 0
          ? new ActivationQuant(format, Scaling.DYNAMIC_PER_TOKEN, 0)
          : new ActivationQuant(
              format, powers ? Scaling.DYNAMIC_PER_GROUP_E8M0 : Scaling.DYNAMIC_PER_GROUP, size);
    }
    // A scale of the whole batch is one that no token can know: the engines take each token's.
    return new ActivationQuant(format, Scaling.DYNAMIC_PER_TOKEN, 0);
  }
}
