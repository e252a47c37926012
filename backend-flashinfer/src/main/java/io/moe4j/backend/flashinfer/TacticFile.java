package io.moe4j.backend.flashinfer;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.SerializationFeature;
import com.fasterxml.jackson.databind.json.JsonMapper;
import io.moe4j.cuda.tuning.FileUpdate;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;

/**
 * The file of tuned tactics: JSON, replaced in one step, one writer at a time ({@link FileUpdate}).
 */
final class TacticFile {
  /** The one format there has been. */
  static final int FORMAT = 1;

  private static final int MAX_BYTES = 4 << 20;

  private static final ObjectMapper JSON =
      JsonMapper.builder()
          .enable(SerializationFeature.INDENT_OUTPUT)
          .enable(DeserializationFeature.FAIL_ON_NULL_FOR_PRIMITIVES)
          .enable(DeserializationFeature.FAIL_ON_MISSING_CREATOR_PROPERTIES)
          .build();

  /**
   * A tuned choice.
   *
   * @param key what it was measured for
   * @param tokens number of tokens
   * @param first kernel of the first product
   * @param second kernel of the second product
   * @param micros of a forward with them
   * @param builtInMicros of a forward with the module's own choice
   */
  record Entry(
      TacticKey key, int tokens, long first, long second, double micros, double builtInMicros) {
    Tactics tactics() {
      return new Tactics(first, second);
    }
  }

  /** What the file holds. */
  record Content(int format, List<Entry> entries) {
    Content {
      entries = List.copyOf(entries);
    }
  }

  private TacticFile() {}

  /**
   * Reads it.
   *
   * @return the entries; none where there is no file
   * @throws IOException if it is there and cannot be read, with the reason
   */
  static List<Entry> read(Path file) throws IOException {
    byte[] bytes;
    try {
      bytes = FileUpdate.read(file, MAX_BYTES).orElse(null);
    } catch (IOException e) {
      throw new IOException("it " + e.getMessage(), e);
    }
    if (bytes == null) {
      return List.of();
    }
    try {
      Content content = JSON.readValue(bytes, Content.class);
      if (content.format() != FORMAT) {
        throw new IOException("format is " + content.format() + ", must be " + FORMAT);
      }
      return content.entries();
    } catch (JsonProcessingException | IllegalArgumentException | NullPointerException e) {
      throw new IOException("not a file of tactics: " + firstLine(e), e);
    }
  }

  private static String firstLine(Exception e) {
    return String.valueOf(e.getMessage()).lines().findFirst().orElse(e.toString());
  }

  /** Adds an entry, in place of one for the same. */
  static void add(Path file, Entry entry) throws IOException {
    FileUpdate.run(
        file,
        target -> {
          List<Entry> all = new ArrayList<>(read(target));
          all.removeIf(e -> e.key().equals(entry.key()) && e.tokens() == entry.tokens());
          all.add(entry);
          all.sort(
              Comparator.comparing((Entry e) -> e.key().toString())
                  .thenComparingInt(Entry::tokens));
          return JSON.writeValueAsBytes(new Content(FORMAT, all));
        });
  }
}
