package io.moe4j.cli.bench;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;

/**
 * What somebody else's implementation took for a case, measured by the reader.
 *
 * @param name of the peer
 * @param shape as {@code --shape} has it
 * @param dtype as {@code --dtype} has it
 * @param tokens {@code T}
 * @param nanos of one forward
 */
public record Peer(String name, String shape, String dtype, int tokens, double nanos) {
  private static final String ACCEPTED =
      "accepted is a JSON array of {\"name\", \"shape\", \"dtype\", \"tokens\", \"ms\"}";

  /**
   * {@return the peers of a file}
   *
   * @param file a JSON array: {@code [{"name": "PyTorch", "shape": "olmoe", "dtype": "bf16",
   *     "tokens": 16, "ms": 44.1}]}
   * @throws IOException if it cannot be read
   * @throws IllegalArgumentException if it is something else; says which entry and why
   */
  public static List<Peer> read(Path file) throws IOException {
    JsonNode root;
    try {
      root = new ObjectMapper().readTree(Files.readString(file));
    } catch (com.fasterxml.jackson.core.JsonProcessingException e) {
      throw new IllegalArgumentException(
          file + " is no JSON (" + e.getOriginalMessage() + "); " + ACCEPTED, e);
    }
    if (!root.isArray()) {
      throw new IllegalArgumentException(file + " holds no array; " + ACCEPTED);
    }
    List<Peer> peers = new ArrayList<>();
    for (JsonNode n : root) {
      boolean right =
          n.path("name").isTextual()
              && n.path("shape").isTextual()
              && n.path("dtype").isTextual()
              && n.path("tokens").canConvertToInt()
              && n.path("tokens").intValue() > 0
              && n.path("ms").isNumber()
              && n.path("ms").doubleValue() > 0;
      if (!right) {
        throw new IllegalArgumentException(
            file + ": entry " + peers.size() + " is " + n + "; " + ACCEPTED);
      }
      peers.add(
          new Peer(
              n.get("name").textValue(),
              n.get("shape").textValue(),
              n.get("dtype").textValue(),
              n.get("tokens").intValue(),
              n.get("ms").doubleValue() * 1e6));
    }
    return peers;
  }
}
