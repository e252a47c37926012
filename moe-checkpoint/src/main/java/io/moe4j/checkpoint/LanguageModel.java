package io.moe4j.checkpoint;

import io.moe4j.api.CheckpointException;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.TreeSet;

/**
 * The language model's part of a {@code config.json} and the layout that it asks for. A model that
 * wraps others (vision and language, an omni model) keeps the language model's config one or two
 * levels down.
 *
 * @param config the part
 * @param layout its family
 */
record LanguageModel(ModelConfig config, CheckpointLayout layout) {
  private static final List<String> NESTED =
      List.of("text_config", "llm_config", "language_config", "thinker_config");

  /** Configs of towers and heads that may have experts of their own. */
  private static final List<String> NO_LANGUAGE_MODEL =
      List.of(
          "talker",
          "draft",
          "eagle",
          "specul",
          "mtp",
          "vit",
          "code_",
          "codec",
          "code2",
          "token2",
          "assistant");

  private static final List<String> ARCHITECTURE_ENDINGS =
      List.of("ForCausalLM", "ForConditionalGeneration", "LMHeadModel", "Model");

  /**
   * Finds it.
   *
   * @param top the whole config.json
   * @param layouts by model_type
   * @throws CheckpointException if no part is of a known family
   */
  static LanguageModel find(ModelConfig top, Map<String, CheckpointLayout> layouts) {
    Map<String, ModelConfig> parts = new LinkedHashMap<>();
    parts.put("", top);
    collect(top, "", parts);
    for (Map.Entry<String, ModelConfig> part : parts.entrySet()) {
      Optional<CheckpointLayout> layout = layout(part.getValue(), layouts);
      if (layout.isPresent()) {
        Optional<ModelConfig> declared =
            layout.get().configAt().stream()
                .flatMap(key -> part.getValue().optionalObject(key).stream())
                .findFirst();
        return new LanguageModel(
            declared.isPresent() ? declared.get() : sizes(part, parts), layout.get());
      }
    }
    Map<String, ModelConfig> others = others(top);
    List<LanguageModel> known =
        others.values().stream()
            .flatMap(part -> layout(part, layouts).map(l -> new LanguageModel(part, l)).stream())
            .toList();
    if (known.size() == 1) {
      return known.getFirst();
    }
    parts.putAll(others);
    throw unknown(parts, layouts);
  }

  /** Parts under other names, if they have a type and are not of a tower or head of their own. */
  private static Map<String, ModelConfig> others(ModelConfig top) {
    Map<String, ModelConfig> others = new LinkedHashMap<>();
    for (String key : top.keys()) {
      if (!NESTED.contains(key)
          && !OutsideNames.isOtherTower(key)
          && NO_LANGUAGE_MODEL.stream().noneMatch(key::contains)
          && top.textIn(key, "model_type").isPresent()) {
        top.optionalObject(key).ifPresent(part -> others.put(key, part));
      }
    }
    return others;
  }

  private static void collect(ModelConfig config, String path, Map<String, ModelConfig> parts) {
    for (String key : NESTED) {
      config
          .optionalObject(key)
          .ifPresent(nested -> {
            String at = path.isEmpty() ? key : path + "." + key;
            parts.put(at, nested);
            if (path.isEmpty()) {
              collect(nested, at, parts);
            }
          });
    }
  }

  /** A layout may be given for the outer type while the sizes stand further down. */
  private static ModelConfig sizes(
      Map.Entry<String, ModelConfig> part, Map<String, ModelConfig> parts) {
    if (part.getValue().has("hidden_size")) {
      return part.getValue();
    }
    return parts.entrySet().stream()
        .filter(p -> p.getKey().startsWith(part.getKey()) && p.getValue().has("hidden_size"))
        .map(Map.Entry::getValue)
        .findFirst()
        .orElse(part.getValue());
  }

  private static Optional<CheckpointLayout> layout(
      ModelConfig config, Map<String, CheckpointLayout> layouts) {
    Optional<String> type = config.optionalString("model_type");
    if (type.isPresent()) {
      return Optional.ofNullable(layouts.get(type.get()));
    }
    if (!config.has("architectures")) {
      return Optional.empty();
    }
    for (String architecture : config.optionalStrings("architectures").orElse(List.of())) {
      for (String ending : ARCHITECTURE_ENDINGS) {
        if (architecture.endsWith(ending)) {
          String name = plain(architecture.substring(0, architecture.length() - ending.length()));
          Optional<CheckpointLayout> found =
              layouts.entrySet().stream()
                  .filter(e ->
                      plain(e.getKey()).equals(name) || plain(e.getKey()).equals(name + "text"))
                  .map(Map.Entry::getValue)
                  .findFirst();
          if (found.isPresent()) {
            return found;
          }
        }
      }
    }
    return Optional.empty();
  }

  /** DeepseekV2 and deepseek_v2 are one. */
  private static String plain(String name) {
    return name.replace("_", "").toLowerCase(Locale.ROOT);
  }

  private static CheckpointException unknown(
      Map<String, ModelConfig> parts, Map<String, CheckpointLayout> layouts) {
    List<String> types = new ArrayList<>();
    String describe = "as in config.json";
    for (Map.Entry<String, ModelConfig> part : parts.entrySet()) {
      Optional<String> type = part.getValue().optionalString("model_type");
      if (part.getKey().isEmpty() || type.isPresent()) {
        String shown = type.map(t -> "'" + StrictJson.shorten(t) + "'").orElse("missing");
        types.add(part.getKey().isEmpty() ? shown : shown + " in " + part.getKey());
        if (type.isPresent()) {
          describe = StrictJson.shorten(type.get());
        }
      }
    }
    ModelConfig top = parts.getOrDefault("", parts.values().iterator().next());
    return new CheckpointException(
        top.source()
            + ": model_type is "
            + String.join(", ", types)
            + "; known are "
            + String.join(", ", new TreeSet<>(layouts.keySet()))
            + ". Another model is described in a file "
            + MoeCheckpoint.LAYOUT_FILE
            + " beside config.json, in moe's --layout FILE, or with CheckpointLayout.builder(\""
            + describe
            + "\") and CheckpointOptions.DEFAULT.withLayout"
            + (types.size() > 1
                ? "; the model_type to describe is the language model's, which is the last one"
                : "")
            + ". A file to fill in, for a model like qwen3_moe with other names (FAMILIES.md,"
            + " \"Describe a family\"):\n"
            + LayoutJson.template(describe));
  }
}
