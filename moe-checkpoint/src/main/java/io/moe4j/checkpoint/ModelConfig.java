package io.moe4j.checkpoint;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.api.CheckpointException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/**
 * A {@code config.json} (or the part of it that describes the language model), read with errors
 * that name the file, the key, what was found and what is accepted. Where a key was renamed between
 * versions, readers give all its names; the first that is present and not null counts. Immutable.
 */
public final class ModelConfig {
  /** Lists in a config have an entry a layer at most. */
  private static final int MAX_LIST = 10_000;

  private final String source;
  private final ObjectNode json;

  ModelConfig(String source, ObjectNode json) {
    this.source = source;
    this.json = json;
  }

  /** {@return where this was read from, for messages} */
  public String source() {
    return source;
  }

  /** {@return the names of all keys} */
  public List<String> keys() {
    return json.properties().stream().map(e -> e.getKey()).toList();
  }

  /**
   * {@return whether a key is present and not null}
   *
   * @param name the key
   */
  public boolean has(String name) {
    return json.hasNonNull(name);
  }

  private Optional<String> firstPresent(String... names) {
    return Arrays.stream(names).filter(this::has).findFirst();
  }

  /** The first of some keys that is present and not null, as it stands. */
  Optional<Map.Entry<String, JsonNode>> first(List<String> names) {
    return names.stream().filter(this::has).findFirst().map(n -> Map.entry(n, json.get(n)));
  }

  /**
   * A size or count that must be there.
   *
   * @param names its names, the newest first
   * @return the value, at least 1
   * @throws CheckpointException if it is missing or not an integer from 1 to 2^31-1
   */
  public int requireInt(String... names) {
    String name =
        firstPresent(names)
            .orElseThrow(() ->
                new CheckpointException(source + " lacks '" + String.join("' or '", names) + "'"));
    return intAt(name, 1);
  }

  /**
   * A size or count with a default.
   *
   * @param defaultValue if the key is absent or null
   * @param names its names, the newest first
   * @return the value, at least 0
   * @throws CheckpointException if it is there and not an integer from 0 to 2^31-1
   */
  public int optionalInt(int defaultValue, String... names) {
    return firstPresent(names).map(name -> intAt(name, 0)).orElse(defaultValue);
  }

  private int intAt(String name, int smallest) {
    JsonNode node = json.get(name);
    if (!node.isIntegralNumber() || !node.canConvertToInt() || node.intValue() < smallest) {
      throw bad(name, node, "an integer from " + smallest + " to " + Integer.MAX_VALUE);
    }
    return node.intValue();
  }

  /**
   * A number with a default.
   *
   * @param name the key
   * @param defaultValue if the key is absent or null
   * @return the value, finite as a float
   */
  public float optionalFloat(String name, float defaultValue) {
    if (!has(name)) {
      return defaultValue;
    }
    JsonNode node = json.get(name);
    if (!node.isNumber() || !Float.isFinite((float) node.doubleValue())) {
      throw bad(name, node, "a number in the range of a 32-bit float");
    }
    return (float) node.doubleValue();
  }

  /** A finite number, if it is there. */
  Optional<Double> optionalNumber(String name) {
    if (!has(name)) {
      return Optional.empty();
    }
    JsonNode node = json.get(name);
    if (!node.isNumber() || !Double.isFinite(node.doubleValue())) {
      throw bad(name, node, "a finite number");
    }
    return Optional.of(node.doubleValue());
  }

  /**
   * A switch with a default.
   *
   * @param name the key
   * @param defaultValue if the key is absent or null
   * @return the value
   */
  public boolean optionalBoolean(String name, boolean defaultValue) {
    if (!has(name)) {
      return defaultValue;
    }
    JsonNode node = json.get(name);
    if (!node.isBoolean()) {
      throw bad(name, node, "true or false");
    }
    return node.booleanValue();
  }

  /**
   * A string, if it is there.
   *
   * @param names its names, the newest first
   * @return the value, or empty
   */
  public Optional<String> optionalString(String... names) {
    return firstPresent(names)
        .map(name -> {
          JsonNode node = json.get(name);
          if (!node.isTextual()) {
            throw bad(name, node, "a string");
          }
          return node.textValue();
        });
  }

  /**
   * A list of integers, if it is there.
   *
   * @param name the key
   * @return the values, not negative; empty optional if the key is absent or null
   */
  public Optional<List<Integer>> optionalInts(String name) {
    return elements(name, "a list of integers that are not negative")
        .map(nodes -> {
          List<Integer> values = new ArrayList<>();
          for (JsonNode n : nodes) {
            if (!n.isIntegralNumber() || !n.canConvertToInt() || n.intValue() < 0) {
              throw bad(name, n, "a list of integers that are not negative");
            }
            values.add(n.intValue());
          }
          return List.copyOf(values);
        });
  }

  /**
   * A list of strings, if it is there.
   *
   * @param name the key
   * @return the values; empty optional if the key is absent or null
   */
  public Optional<List<String>> optionalStrings(String name) {
    return elements(name, "a list of strings")
        .map(nodes -> {
          List<String> values = new ArrayList<>();
          for (JsonNode n : nodes) {
            if (!n.isTextual()) {
              throw bad(name, n, "a list of strings");
            }
            values.add(n.textValue());
          }
          return List.copyOf(values);
        });
  }

  private Optional<Iterable<JsonNode>> elements(String name, String accepted) {
    if (!has(name)) {
      return Optional.empty();
    }
    JsonNode node = json.get(name);
    if (!node.isArray() || node.size() > MAX_LIST) {
      throw bad(name, node, accepted + ", at most " + MAX_LIST + " of them");
    }
    return Optional.of(node);
  }

  /**
   * A nested object, if it is there.
   *
   * @param name the key
   * @return the object, or empty if the key is absent or null
   */
  public Optional<ModelConfig> optionalObject(String name) {
    if (!has(name)) {
      return Optional.empty();
    }
    JsonNode node = json.get(name);
    if (node instanceof ObjectNode object) {
      return Optional.of(new ModelConfig(source + " (" + StrictJson.shorten(name) + ")", object));
    }
    throw bad(name, node, "a JSON object");
  }

  /** Whether a key has a number above 0; whatever else it has is not looked at. */
  boolean isPositive(String name) {
    JsonNode node = json.path(name);
    return node.isNumber() && node.doubleValue() > 0;
  }

  /** Whether a key has a JSON object. */
  boolean isObject(String name) {
    return json.path(name).isObject();
  }

  /** A nested object, which is there, with a remark on what it is for messages. */
  ModelConfig object(String name, String remark) {
    ModelConfig nested = optionalObject(name).orElseThrow();
    return new ModelConfig(source + " (" + name + ", " + remark + ")", nested.json);
  }

  /** A string; empty if it is something else or missing. */
  Optional<String> textAt(String name) {
    JsonNode node = json.path(name);
    return node.isTextual() ? Optional.of(node.textValue()) : Optional.empty();
  }

  /** An integer that must be there and may be negative down to {@code smallest}. */
  int requireInteger(int smallest, String... names) {
    return intAt(
        firstPresent(names)
            .orElseThrow(() ->
                new CheckpointException(source + " lacks '" + String.join("' or '", names) + "'")),
        smallest);
  }

  /** A string in a nested object; empty if either is something else. */
  Optional<String> textIn(String object, String name) {
    JsonNode node = json.path(object).path(name);
    return node.isTextual() ? Optional.of(node.textValue()) : Optional.empty();
  }

  /**
   * The error for a value that cannot be used.
   *
   * @param name the key
   * @param accepted what would be, in words
   * @return the exception, to be thrown
   */
  public CheckpointException unusable(String name, String accepted) {
    return bad(name, json.path(name), accepted);
  }

  CheckpointException bad(String name, JsonNode found, String accepted) {
    return new CheckpointException(
        source
            + ": '"
            + StrictJson.shorten(name)
            + "' is "
            + StrictJson.shorten(found.isMissingNode() ? "missing" : text(found))
            + ", must be "
            + accepted);
  }

  private static String text(JsonNode node) {
    if (!node.isTextual()) {
      return JsonTree.text(node);
    }
    String text = node.textValue();
    boolean looksLikeAnother = text.matches("[-+.0-9eE]*|true|false|null|NaN|-?Infinity");
    return looksLikeAnother ? "the string '" + text + "'" : text;
  }
}
