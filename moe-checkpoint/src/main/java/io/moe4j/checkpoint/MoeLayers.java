package io.moe4j.checkpoint;

import com.fasterxml.jackson.databind.JsonNode;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.stream.IntStream;

/**
 * Which layers have routed experts, by config.json. A list that names every layer's type, or the
 * MoE layers, decides alone where it is present; otherwise a layer is MoE if no other rule says
 * that it is dense. Immutable.
 *
 * @param typeKeys lists of types by layer (or a string with a letter a layer)
 * @param moeTypes the types that have experts
 * @param listedKeys lists of the MoE layers (or a string of them with commas)
 * @param flagKeys lists with 0 or 1 (or a boolean) a layer
 * @param denseKeys lists of dense layers
 * @param first the first that may have experts
 * @param last the last; -1 is none
 * @param every only each such layer, counted from {@code offset}
 * @param offset {@code (layer + offset) % every == 0}
 */
record MoeLayers(
    List<String> typeKeys,
    List<String> moeTypes,
    List<String> listedKeys,
    List<String> flagKeys,
    List<String> denseKeys,
    Optional<ConfigValue> first,
    Optional<ConfigValue> last,
    Optional<ConfigValue> every,
    int offset) {

  static final MoeLayers ALL =
      new MoeLayers(
          List.of(),
          List.of(),
          List.of(),
          List.of(),
          List.of(),
          Optional.empty(),
          Optional.empty(),
          Optional.empty(),
          0);

  static MoeLayers parse(LayoutJson.Part json) {
    json.requireKeys(
        "types", "moe_types", "listed", "flags", "dense", "first", "last", "every", "offset");
    return new MoeLayers(
        json.texts("types"),
        json.texts("moe_types"),
        json.texts("listed"),
        json.texts("flags"),
        json.texts("dense"),
        json.optional("first").map(ConfigValue::parse),
        json.optional("last").map(ConfigValue::parse),
        json.optional("every").map(ConfigValue::parse),
        json.optional("offset").map(p -> p.intValue(0)).orElse(0));
  }

  boolean isMoe(ModelConfig config, int layer) {
    Optional<Map.Entry<String, JsonNode>> types = config.first(typeKeys);
    if (types.isPresent()) {
      List<String> names = names(config, types.get());
      return layer < names.size() && moeTypes.contains(names.get(layer));
    }
    Optional<Map.Entry<String, JsonNode>> flags =
        config.first(flagKeys).filter(e -> e.getValue().isArray());
    if (flags.isPresent()) {
      JsonNode flag = flags.get().getValue().path(layer);
      if (!flag.isBoolean() && !flag.isIntegralNumber() && !flag.isMissingNode()) {
        throw config.bad(flags.get().getKey(), flag, "a list of 0 and 1");
      }
      return flag.asBoolean();
    }
    Optional<Map.Entry<String, JsonNode>> listed = config.first(listedKeys);
    if (listed.isPresent()) {
      return numbers(config, listed.get()).contains(layer);
    }
    int lastLayer = value(last, "last", config, -1);
    return !config.first(denseKeys).map(e -> numbers(config, e).contains(layer)).orElse(false)
        && layer >= value(first, "first", config, 0)
        && (lastLayer < 0 || layer <= lastLayer)
        && (layer + offset) % Math.max(1, value(every, "every", config, 1)) == 0;
  }

  private static int value(
      Optional<ConfigValue> value, String name, ModelConfig config, int otherwise) {
    return value.flatMap(v -> v.find(name, config, 0)).map(f -> f.intValue(-1)).orElse(otherwise);
  }

  private static List<String> names(ModelConfig config, Map.Entry<String, JsonNode> e) {
    if (e.getValue().isTextual()) {
      String pattern = e.getValue().textValue();
      return IntStream.range(0, pattern.length())
          .mapToObj(i -> pattern.substring(i, i + 1))
          .toList();
    }
    return config.optionalStrings(e.getKey()).orElseThrow();
  }

  private static List<Integer> numbers(ModelConfig config, Map.Entry<String, JsonNode> e) {
    if (!e.getValue().isTextual()) {
      return config.optionalInts(e.getKey()).orElseThrow();
    }
    List<Integer> numbers = new ArrayList<>();
    for (String number : e.getValue().textValue().split(",", -1)) {
      if (!number.isBlank() && !number.strip().matches("[0-9]{1,6}")) {
        throw config.bad(e.getKey(), e.getValue(), "layer numbers with commas between them");
      }
      if (!number.isBlank()) {
        numbers.add(Integer.valueOf(number.strip()));
      }
    }
    return numbers;
  }
}
