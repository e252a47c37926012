package io.moe4j.checkpoint;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.StreamReadConstraints;
import com.fasterxml.jackson.core.StreamReadFeature;
import com.fasterxml.jackson.core.json.JsonReadFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.api.CheckpointException;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.Reader;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.CodingErrorAction;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Optional;

/**
 * JSON from files that nobody vouches for: strict UTF-8, nothing after the document, bounded depth,
 * sizes and token counts. Headers have no duplicate keys; in other files a key may be given twice
 * with one value, and one with two values may not be read.
 */
final class StrictJson {
  /** Bytes of a config.json or adapter_config.json; real ones stay far below a megabyte. */
  static final long MAX_CONFIG_BYTES = 8L << 20;

  /** Bytes of a shard index: one line a tensor, tens of thousands of tensors. */
  static final long MAX_INDEX_BYTES = 64L << 20;

  private static final int MAX_DEPTH = 64;
  private static final int MAX_NAME_CHARS = 4096;
  private static final int MAX_STRING_CHARS = 4 << 20;
  private static final int MAX_NUMBER_CHARS = 64;
  private static final long MAX_CONFIG_TOKENS = 2_000_000;

  private static final JsonFactory HEADER_FACTORY = factory(Long.MAX_VALUE);

  /** Python writes infinities and NaN as bare words; where a key is read, they are refused. */
  private static final JsonFactory TREE_FACTORY =
      factory(MAX_CONFIG_TOKENS)
          .rebuild()
          .enable(JsonReadFeature.ALLOW_NON_NUMERIC_NUMBERS)
          .disable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
          .build();

  private StrictJson() {}

  private static JsonFactory factory(long maxTokens) {
    return JsonFactory.builder()
        .streamReadConstraints(
            StreamReadConstraints.builder()
                .maxNestingDepth(MAX_DEPTH)
                .maxNameLength(MAX_NAME_CHARS)
                .maxStringLength(MAX_STRING_CHARS)
                .maxNumberLength(MAX_NUMBER_CHARS)
                .maxTokenCount(maxTokens)
                .build())
        .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
        // Names come from the file: neither interned nor kept in a table that outlives the parse.
        .disable(JsonFactory.Feature.INTERN_FIELD_NAMES)
        .disable(JsonFactory.Feature.CANONICALIZE_FIELD_NAMES)
        .build();
  }

  /**
   * A pull parser over UTF-8 bytes. Decoded by the JDK, because Jackson given bytes would also
   * accept UTF-16 and UTF-32.
   */
  static JsonParser parser(byte[] utf8) throws IOException {
    return HEADER_FACTORY.createParser(strictReader(new ByteArrayInputStream(utf8)));
  }

  private static Reader strictReader(InputStream in) {
    return new InputStreamReader(
        in,
        StandardCharsets.UTF_8
            .newDecoder()
            .onMalformedInput(CodingErrorAction.REPORT)
            .onUnmappableCharacter(CodingErrorAction.REPORT));
  }

  /**
   * Reads a whole file that must hold one JSON object.
   *
   * @param file the file
   * @param maxBytes refuse longer ones before reading
   * @return the object
   */
  static ObjectNode readObject(Path file, long maxBytes) {
    try {
      if (!Files.isRegularFile(file)) {
        throw new CheckpointException(
            file + (Files.exists(file) ? " is not a regular file" : " does not exist"));
      }
      long size = Files.size(file);
      if (size > maxBytes) {
        throw new CheckpointException(
            file + " has " + size + " bytes; files of this kind may have at most " + maxBytes);
      }
      try (InputStream in = Files.newInputStream(file)) {
        // The size was of a moment ago; the limit holds for what is read.
        byte[] bytes = in.readNBytes(Math.toIntExact(maxBytes));
        Optional<String> kind =
            FileKinds.recognise(
                Arrays.copyOf(bytes, Math.min(bytes.length, FileKinds.SNIFF_BYTES)));
        if (kind.isPresent()) {
          throw new CheckpointException(file + " " + kind.get());
        }
        return readObject(file.toString(), bytes);
      }
    } catch (JsonProcessingException e) {
      throw new CheckpointException(file + " is not acceptable JSON: " + brief(e), e);
    } catch (CharacterCodingException e) {
      throw new CheckpointException(file + " is not valid UTF-8", e);
    } catch (NoSuchFileException e) {
      throw new CheckpointException(file + " does not exist", e);
    } catch (IOException e) {
      throw new CheckpointException(file + " cannot be read: " + Folders.reason(e), e);
    }
  }

  /** Reads bytes that must hold one JSON object. */
  static ObjectNode readObject(String source, byte[] utf8) throws IOException {
    JsonNode node = JsonTree.read(TREE_FACTORY, strictReader(new ByteArrayInputStream(utf8)));
    if (node instanceof ObjectNode object) {
      return object;
    }
    throw new CheckpointException(
        source + " holds a JSON " + node.getNodeType() + ", must hold an object");
  }

  /** {@return an object without keys} */
  static ObjectNode emptyObject() {
    return JsonNodeFactory.instance.objectNode();
  }

  /** Jackson's message on one line, with the place but without a copy of the source. */
  static String brief(JsonProcessingException e) {
    String message = shorten(e.getOriginalMessage().replace('\n', ' '));
    return e.getLocation() == null
        ? message
        : message
            + " (line "
            + e.getLocation().getLineNr()
            + ", column "
            + e.getLocation().getColumnNr()
            + ")";
  }

  /** A hostile file's text as it may stand in a message: printable and not endless. */
  static String shorten(String text) {
    StringBuilder out = new StringBuilder();
    for (int i = 0; i < text.length() && out.length() < 200; i++) {
      char c = text.charAt(i);
      out.append(Character.isISOControl(c) ? '?' : c);
    }
    return text.length() > 200 ? out + "..." : out.toString();
  }
}
