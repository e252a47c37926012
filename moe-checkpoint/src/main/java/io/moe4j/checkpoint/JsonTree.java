package io.moe4j.checkpoint;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParseException;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.MissingNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import com.fasterxml.jackson.databind.node.POJONode;
import java.io.IOException;
import java.io.Reader;
import org.jspecify.annotations.Nullable;

/**
 * Reads a JSON document into a tree. A key that is given twice keeps its value if both are equal;
 * if not, its node is a {@link Conflict}, which is of no JSON type, so that whoever reads the key
 * refuses it and whoever does not is not disturbed.
 */
final class JsonTree {
  private static final JsonNodeFactory NODES = JsonNodeFactory.instance;

  /** Two values of one key. */
  private record Conflict(String first, String second) {
    @Override
    public String toString() {
      return "given twice, as " + first + " and as " + second;
    }
  }

  private JsonTree() {}

  /**
   * Reads a whole document.
   *
   * @param factory limits the nesting
   * @param text the document
   * @return its root; missing where there is nothing
   */
  static JsonNode read(JsonFactory factory, Reader text) throws IOException {
    try (JsonParser p = factory.createParser(text)) {
      if (p.nextToken() == null) {
        return MissingNode.getInstance();
      }
      JsonNode root = value(p);
      if (p.nextToken() != null) {
        throw new JsonParseException(p, "the document goes on after its end");
      }
      return root;
    }
  }

  private static JsonNode value(JsonParser p) throws IOException {
    return switch (p.currentToken()) {
      case START_OBJECT -> object(p);
      case START_ARRAY -> array(p);
      case VALUE_STRING -> NODES.textNode(p.getText());
      case VALUE_TRUE -> NODES.booleanNode(true);
      case VALUE_FALSE -> NODES.booleanNode(false);
      case VALUE_NULL -> NODES.nullNode();
      case VALUE_NUMBER_FLOAT -> NODES.numberNode(p.getDoubleValue());
      case VALUE_NUMBER_INT ->
          switch (p.getNumberType()) {
            case INT -> NODES.numberNode(p.getIntValue());
            case LONG -> NODES.numberNode(p.getLongValue());
            default -> NODES.numberNode(p.getBigIntegerValue());
          };
      default -> throw new JsonParseException(p, "unexpected " + p.currentToken());
    };
  }

  private static ObjectNode object(JsonParser p) throws IOException {
    ObjectNode object = NODES.objectNode();
    while (p.nextToken() == JsonToken.FIELD_NAME) {
      String key = p.currentName();
      p.nextToken();
      JsonNode value = value(p);
      JsonNode before = object.get(key);
      object.set(key, before == null || before.equals(value) ? value : conflict(before, value));
    }
    return object;
  }

  private static JsonNode conflict(JsonNode before, JsonNode value) {
    return before.isPojo() ? before : new POJONode(new Conflict(text(before), text(value)));
  }

  private static ArrayNode array(JsonParser p) throws IOException {
    ArrayNode array = NODES.arrayNode();
    while (p.nextToken() != JsonToken.END_ARRAY) {
      array.add(value(p));
    }
    return array;
  }

  /**
   * A value as it may stand in a message.
   *
   * @param node of a tree that was read here, or null
   */
  static String text(@Nullable JsonNode node) {
    if (node == null || node.isMissingNode()) {
      return "missing";
    }
    return node.isContainerNode()
        ? "a JSON " + node.getNodeType()
        : StrictJson.shorten(node.isTextual() ? "'" + node.textValue() + "'" : node.asText());
  }
}
