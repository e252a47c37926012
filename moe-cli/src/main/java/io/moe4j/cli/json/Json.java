package io.moe4j.cli.json;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.SerializationFeature;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.api.spi.Fact;

/**
 * JSON as programs get it: one document, keys in snake_case, built by hand so that it is stable.
 */
public final class Json {
  private static final ObjectMapper MAPPER =
      new ObjectMapper().enable(SerializationFeature.INDENT_OUTPUT);

  private static final int SCHEMA_VERSION = 1;

  private Json() {}

  /** {@return an empty object} */
  public static ObjectNode object() {
    return MAPPER.createObjectNode();
  }

  /**
   * {@return the beginning of a command's document: which document this is, and the version of its
   * form. The version changes when a key is renamed, removed or means something else; keys may be
   * added without}
   *
   * @param command like {@code run}
   */
  public static ObjectNode document(String command) {
    ObjectNode root = object();
    root.put("schema", "moe4j." + command);
    root.put("schema_version", SCHEMA_VERSION);
    return root;
  }

  /** {@return an empty array} */
  public static ArrayNode array() {
    return MAPPER.createArrayNode();
  }

  /**
   * {@return what a backend says of a layer it prepared}
   *
   * @param fact one thing of it
   */
  public static ObjectNode fact(Fact fact) {
    ObjectNode n = object();
    n.put("name", fact.name());
    n.put("text", fact.text());
    if (fact.bytes() > 0) {
      n.put("bytes", fact.bytes());
    }
    return n;
  }

  /**
   * {@return the text of a document, indented}
   *
   * @param node the document
   */
  public static String text(ObjectNode node) {
    try {
      return MAPPER.writeValueAsString(node);
    } catch (JsonProcessingException e) {
      throw new IllegalStateException("a tree of plain nodes could not be written", e);
    }
  }
}
