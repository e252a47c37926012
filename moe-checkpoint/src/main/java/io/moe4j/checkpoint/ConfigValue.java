package io.moe4j.checkpoint;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import io.moe4j.api.CheckpointException;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.TreeMap;
import org.jspecify.annotations.Nullable;

/**
 * A value of a layout's {@code config} part: written there, or read from a model's config.json.
 * Immutable.
 *
 * @param literal the value itself, or null where it is read
 * @param keys where it is read, the newest name first; the first that is present counts
 * @param at which element of a list; negative = the layer's
 * @param orElse what an absent key means, or null where the key must be there
 * @param map what the value read stands for, by its text; {@code *} for all others; empty = itself
 */
record ConfigValue(
    @Nullable JsonNode literal,
    List<String> keys,
    int at,
    @Nullable ConfigValue orElse,
    Map<String, ConfigValue> map) {

  private static final String OTHERS = "*";

  /** A value and where it was found, for messages. */
  record Found(@Nullable ModelConfig config, String name, JsonNode value) {
    CheckpointException unusable(String accepted) {
      return config == null
          ? new CheckpointException(
              "the layout says " + name + " is " + value.asText() + ", must be " + accepted)
          : config.bad(name, value, accepted);
    }

    int intValue(int smallest) {
      if (!value.isIntegralNumber() || !value.canConvertToInt() || value.intValue() < smallest) {
        throw unusable("an integer from " + smallest + " to " + Integer.MAX_VALUE);
      }
      return value.intValue();
    }

    float floatValue() {
      if (!value.isNumber() || !Float.isFinite((float) value.doubleValue())) {
        throw unusable("a number in the range of a 32-bit float");
      }
      return (float) value.doubleValue();
    }

    boolean booleanValue() {
      if (!value.isBoolean()) {
        throw unusable("true or false");
      }
      return value.booleanValue();
    }

    String text() {
      if (!value.isTextual()) {
        throw unusable("a string");
      }
      return value.textValue();
    }
  }

  static ConfigValue of(Object value) {
    JsonNodeFactory f = JsonNodeFactory.instance;
    JsonNode node =
        switch (value) {
          case Integer i -> f.numberNode(i);
          case Float x -> f.numberNode(x);
          case Boolean b -> f.booleanNode(b);
          default -> f.textNode(value.toString());
        };
    return new ConfigValue(node, List.of(), -1, null, Map.of());
  }

  /**
   * Reads one.
   *
   * @param json a scalar, or an object with {@code key} and perhaps {@code default}, {@code map},
   *     {@code at}
   */
  static ConfigValue parse(LayoutJson.Part json) {
    JsonNode node = json.node();
    if (node.isValueNode()) {
      return new ConfigValue(node, List.of(), -1, null, Map.of());
    }
    json.requireKeys("key", "default", "map", "at");
    Map<String, ConfigValue> map = new LinkedHashMap<>();
    json.optional("map").ifPresent(m -> m.forEach((k, v) -> map.put(k, parse(v))));
    return new ConfigValue(
        null,
        json.required("key").texts(),
        json.optional("at").map(p -> p.intValue(0)).orElse(-1),
        json.optional("default").map(ConfigValue::parse).orElse(null),
        map);
  }

  /** The value, or empty if nothing says it. */
  Optional<Found> find(String name, ModelConfig config, int layer) {
    if (literal != null) {
      return Optional.of(new Found(null, name, literal));
    }
    Optional<Found> found =
        config.first(keys).map(e -> new Found(config, e.getKey(), element(config, e, layer)));
    if (found.isEmpty() && orElse != null) {
      found = orElse.find(name, config, layer);
    }
    if (map.isEmpty() || found.isEmpty()) {
      return found;
    }
    String text = found.get().value().asText();
    ConfigValue meant = map.getOrDefault(text, map.get(OTHERS));
    if (meant == null) {
      throw found.get().unusable("one of " + String.join(", ", new TreeMap<>(map).keySet()));
    }
    return meant.find(name, config, layer);
  }

  /** The value. */
  Found get(String name, ModelConfig config, int layer) {
    return find(name, config, layer)
        .orElseThrow(() ->
            new CheckpointException(
                config.source() + " lacks '" + String.join("' or '", keys) + "'"));
  }

  private JsonNode element(ModelConfig config, Map.Entry<String, JsonNode> e, int layer) {
    JsonNode value = e.getValue();
    if (!value.isArray()) {
      return value;
    }
    int index = at >= 0 ? at : layer;
    if (index >= value.size()) {
      throw config.bad(
          e.getKey(), value, "a value, or a list with more than " + index + " of them");
    }
    return value.get(index);
  }
}
