package io.moe4j.cli.json;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.SerializationFeature;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;

/**
 * JSON as programs get it: one document, keys in snake_case, built by hand so that it is stable.
 */
public final class Json {
  private static final ObjectMapper MAPPER =
      new ObjectMapper().enable(SerializationFeature.INDENT_OUTPUT);

  private Json() {}

  /** {@return an empty object} */
  public static ObjectNode object() {
    return MAPPER.createObjectNode();
  }

  /** {@return an empty array} */
  public static ArrayNode array() {
    return MAPPER.createArrayNode();
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
