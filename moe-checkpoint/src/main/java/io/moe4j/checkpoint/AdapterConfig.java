package io.moe4j.checkpoint;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.api.AdapterException;
import io.moe4j.api.CheckpointException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.regex.Pattern;

/**
 * What {@code adapter_config.json} of a LoRA adapter says, as far as it matters here: PEFT's, or
 * mlx-lm's file of the same name.
 *
 * @param baseModel the model it was trained for, as its trainer named it
 * @param peftVersion the PEFT version that wrote it; absent before 0.18
 * @param rank {@code r}
 * @param alpha {@code lora_alpha}; for mlx-lm, whose scale is not divided by the rank, scale times
 *     rank
 * @param rslora whether the scale is {@code alpha / sqrt(r)} instead of {@code alpha / r}
 * @param rankPattern regex to rank, in the order of the file
 * @param alphaPattern regex to alpha, in the order of the file
 * @param targetModules module names; one entry for a regex
 * @param targetParameters parameter names, for factors of fused experts
 * @param modulesToSave modules that are stored as a whole
 * @param bias which biases are stored: none, all or lora_only
 * @param fused how experts are folded into the factors of fused parameters
 * @param variants kinds of LoRA that this library does not compute and that the adapter uses, in
 *     words
 * @param form whose names and shapes the weights have
 */
public record AdapterConfig(
    Optional<String> baseModel,
    Optional<String> peftVersion,
    int rank,
    double alpha,
    boolean rslora,
    Map<String, Double> rankPattern,
    Map<String, Double> alphaPattern,
    List<String> targetModules,
    List<String> targetParameters,
    List<String> modulesToSave,
    String bias,
    FusedLayout fused,
    List<String> variants,
    Form form) {
  /** Whose names and shapes an adapter's weights have. */
  public enum Form {
    /** {@code adapter_model.safetensors}: {@code lora_A [r, in]} and {@code lora_B [out, r]}. */
    PEFT,
    /** {@code adapters.safetensors}: {@code lora_a} and {@code lora_b}, for linears transposed. */
    MLX
  }

  /** The file's name. */
  public static final String FILE = "adapter_config.json";

  /** Modules and parameters that are named one by one: real lists have a few dozen. */
  private static final int MAX_LIST = 10_000;

  /** Keys whose presence (not null, false or empty) means another kind of LoRA. */
  private static final Map<String, String> VARIANTS =
      Map.ofEntries(
          Map.entry("use_dora", "DoRA"),
          Map.entry("lora_bias", "a bias on lora_B"),
          Map.entry("alora_invocation_tokens", "activated LoRA (aLoRA)"),
          Map.entry("use_qalora", "QA-LoRA"),
          Map.entry("use_bdlora", "block-diagonal LoRA"),
          Map.entry("layer_replication", "replicated layers"),
          Map.entry("arrow_config", "Arrow routing of several adapters"),
          Map.entry("monteclora_config", "MonteCLoRA"),
          Map.entry("kasa_config", "KaSA"));

  private static final Pattern LAYOUT_KEY =
      Pattern.compile("(?i)lora_?[ab]?_?(?:layout|order|expert_layout|expert_order)");

  private static final Set<String> LAYOUT_KEYS = Set.of("lora_A_layout", "lora_B_layout");

  /** PEFT writes all of these, whatever they are set to; other programs write what they need. */
  private static final Set<String> PEFT_ONLY_KEYS =
      Set.of("peft_version", "layers_pattern", "loftq_config", "megatron_core");

  /** Beside the config of NeMo Automodel, which folds experts as PEFT does. */
  private static final String AUTOMODEL = "automodel_peft_config.json";

  /** Initialisations that leave the base weights alone, so that the factors mean what they say. */
  private static final Set<String> PLAIN_INITS =
      Set.of("gaussian", "eva", "orthogonal", "mica", "true", "false");

  /** Copies the collections. */
  public AdapterConfig {
    rankPattern = Collections.unmodifiableMap(new LinkedHashMap<>(rankPattern));
    alphaPattern = Collections.unmodifiableMap(new LinkedHashMap<>(alphaPattern));
    targetModules = List.copyOf(targetModules);
    targetParameters = List.copyOf(targetParameters);
    modulesToSave = List.copyOf(modulesToSave);
    variants = List.copyOf(variants);
  }

  /**
   * Reads a directory's adapter_config.json.
   *
   * @param directory the adapter's directory
   * @return the config
   * @throws CheckpointException if the file is missing, is no acceptable JSON, or a value has the
   *     wrong type
   * @throws AdapterException if it is not a LoRA adapter
   */
  public static AdapterConfig read(Path directory) {
    Path file = directory.resolve(FILE);
    if (!Files.isDirectory(directory)) {
      throw new CheckpointException(
          directory
              + (Files.exists(directory) ? " is not a directory" : " does not exist")
              + "; an adapter is a directory with "
              + FILE
              + ForeignAdapters.file(directory));
    }
    if (!Files.exists(file)) {
      throw new CheckpointException(
          file
              + " does not exist"
              + ForeignAdapters.hint(directory)
              + Folders.hint(directory, FILE));
    }
    ObjectNode json = StrictJson.readObject(file, StrictJson.MAX_CONFIG_BYTES);
    ModelConfig config = new ModelConfig(file.toString(), json);
    String type = config.optionalString("peft_type").orElse("LORA");
    if (!type.equals("LORA")) {
      throw new AdapterException(
          file + ": peft_type is '" + StrictJson.shorten(type) + "', accepted is LORA");
    }
    if (MlxConfig.isMlx(directory, config)) {
      return MlxConfig.read(config);
    }
    double alpha = number(file, "lora_alpha", json.path("lora_alpha"));
    return new AdapterConfig(
        config.optionalString("base_model_name_or_path"),
        config.optionalString("peft_version"),
        config.requireInt("r"),
        alpha,
        config.optionalBoolean("use_rslora", false),
        pattern(file, json, "rank_pattern"),
        pattern(file, json, "alpha_pattern"),
        strings(file, json, "target_modules"),
        strings(file, json, "target_parameters"),
        strings(file, json, "modules_to_save"),
        config.optionalString("bias").orElse("none"),
        fused(directory, config),
        variants(json),
        Form.PEFT);
  }

  /** A layout under a name that is not read here must not pass for none. */
  private static void requireKnownLayouts(ModelConfig config) {
    for (String key : config.keys()) {
      if (LAYOUT_KEY.matcher(key).matches() && !LAYOUT_KEYS.contains(key)) {
        throw config.unusable(
            key, "called lora_A_layout or lora_B_layout, as other names are not read");
      }
    }
  }

  /** A key that may stand in two places, with one meaning. */
  private static Optional<String> one(ModelConfig config, ModelConfig detail, String key) {
    Optional<String> outer = config.optionalString(key);
    Optional<String> inner = detail.optionalString(key);
    if (outer.isPresent() && inner.isPresent() && !outer.equals(inner)) {
      throw new AdapterException(
          config.source()
              + ": '"
              + key
              + "' is '"
              + StrictJson.shorten(outer.get())
              + "', and '"
              + StrictJson.shorten(inner.get())
              + "' in unsloth_fused_expert_lora");
    }
    return outer.or(() -> inner);
  }

  private static FusedLayout fused(Path directory, ModelConfig config) {
    requireKnownLayouts(config);
    config
        .optionalObject("unsloth_fused_expert_lora")
        .ifPresent(AdapterConfig::requireKnownLayouts);
    Optional<String> a = config.optionalString("lora_A_layout");
    Optional<String> b = config.optionalString("lora_B_layout");
    Optional<ModelConfig> detail = config.optionalObject("unsloth_fused_expert_lora");
    Map<String, FusedLayout.Parameter> byParameter = new LinkedHashMap<>();
    if (detail.isPresent()) {
      a = one(config, detail.get(), "lora_A_layout");
      b = one(config, detail.get(), "lora_B_layout");
      Optional<ModelConfig> parameters = detail.get().optionalObject("parameters");
      for (String name : parameters.map(ModelConfig::keys).orElse(List.of())) {
        parameters
            .flatMap(p -> p.optionalObject(name))
            .ifPresent(p ->
                byParameter.put(
                    name,
                    new FusedLayout.Parameter(
                        p.optionalString("lora_A_layout"),
                        p.optionalString("lora_B_layout"),
                        p.has("num_experts")
                            ? Optional.of(p.requireInt("num_experts"))
                            : Optional.empty())));
      }
    }
    boolean ofUnsloth =
        config.keys().stream().anyMatch(AdapterConfig::namesUnsloth)
            || config
                .optionalObject("auto_mapping")
                .map(m ->
                    m.keys().stream()
                        .anyMatch(key ->
                            namesUnsloth(key)
                                || config
                                    .textIn("auto_mapping", key)
                                    .map(AdapterConfig::namesUnsloth)
                                    .orElse(false)))
                .orElse(false);
    boolean ofPeft =
        config.keys().stream().anyMatch(PEFT_ONLY_KEYS::contains)
            || Files.exists(directory.resolve(AUTOMODEL));
    return new FusedLayout(
        a,
        b,
        byParameter,
        ofUnsloth
            ? FusedLayout.Writer.UNSLOTH
            : ofPeft ? FusedLayout.Writer.PEFT : FusedLayout.Writer.UNKNOWN);
  }

  private static boolean namesUnsloth(String key) {
    return key.toLowerCase(Locale.ROOT).contains("unsloth");
  }

  private static List<String> variants(ObjectNode json) {
    List<String> found = new ArrayList<>();
    VARIANTS.forEach((key, words) -> {
      if (isSet(json.path(key))) {
        found.add(words);
      }
    });
    String init = json.path("init_lora_weights").asText("true");
    if (!PLAIN_INITS.contains(init)) {
      found.add(
          "init_lora_weights '"
              + StrictJson.shorten(init)
              + "', which changes the base weights (accepted: "
              + String.join(", ", PLAIN_INITS.stream().sorted().toList())
              + ")");
    }
    Collections.sort(found);
    return found;
  }

  private static boolean isSet(JsonNode node) {
    return switch (node.getNodeType()) {
      case MISSING, NULL -> false;
      case BOOLEAN -> node.booleanValue();
      case ARRAY, OBJECT -> !node.isEmpty();
      default -> true;
    };
  }

  private static double number(Path file, String key, JsonNode node) {
    if (!node.isNumber() || !Double.isFinite(node.doubleValue())) {
      throw new CheckpointException(
          file
              + ": '"
              + key
              + "' is "
              + (node.isTextual() ? "the string " : "")
              + JsonTree.text(node)
              + ", must be a finite number");
    }
    return node.doubleValue();
  }

  private static Map<String, Double> pattern(Path file, ObjectNode json, String key) {
    Map<String, Double> values = new LinkedHashMap<>();
    JsonNode node = json.path(key);
    if (node.isMissingNode() || node.isNull()) {
      return values;
    }
    if (!node.isObject()) {
      throw new CheckpointException(
          file + ": '" + key + "' is " + JsonTree.text(node) + ", must be an object");
    }
    for (Map.Entry<String, JsonNode> e : node.properties()) {
      values.put(
          e.getKey(), number(file, key + "." + StrictJson.shorten(e.getKey()), e.getValue()));
    }
    return values;
  }

  private static List<String> strings(Path file, ObjectNode json, String key) {
    JsonNode node = json.path(key);
    List<String> values = new ArrayList<>();
    if (node.isTextual()) {
      values.add(node.textValue());
    } else if (node.isArray()) {
      if (node.size() > MAX_LIST) {
        throw new CheckpointException(
            file
                + ": '"
                + key
                + "' has "
                + node.size()
                + " entries; accepted are at most "
                + MAX_LIST);
      }
      for (JsonNode n : node) {
        if (!n.isTextual()) {
          throw wrongStrings(file, key, n);
        }
        values.add(n.textValue());
      }
    } else if (!node.isMissingNode() && !node.isNull()) {
      throw wrongStrings(file, key, node);
    }
    return values;
  }

  private static CheckpointException wrongStrings(Path file, String key, JsonNode found) {
    return new CheckpointException(
        file
            + ": '"
            + key
            + "' holds "
            + JsonTree.text(found)
            + ", must be a list of strings, or a string");
  }
}
