package io.moe4j.cuda.tuning;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.StreamReadConstraints;
import com.fasterxml.jackson.core.StreamReadFeature;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.SerializationFeature;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.cuda.KernelSpec;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.Optional;
import java.util.stream.Stream;

/**
 * A file of tuned choices. JSON, one object: {@code format} 1, {@code module} the backend's, and
 * {@code tables}, a list of objects with the components of {@link TunedTable.Key} in snake_case and
 * {@code entries}, whose objects have those of the backend's {@link TunedEntry}. It may come from
 * anywhere: size, depth and every number are bounded, and an entry is used only if the search could
 * have found it. Immutable.
 *
 * @param <E> the backend's entries
 * @since 0.2.0
 */
public final class TuningFile<E extends TunedEntry> {
  private static final int FORMAT = 1;
  private static final int MAX_BYTES = 4 << 20;
  private static final int MAX_TABLES = 1024;
  private static final int MAX_ENTRIES = 4096;
  private static final int MAX_TEXT = 256;
  private static final int MAX_SIZE = 1 << 24;
  private static final int HASH_BYTES = 8;
  static final int MAX_TOKENS = 1 << 20;
  static final int MAX_ADAPTERS = 1 << 16;
  static final int MAX_RANK = 1 << 14;
  private static final ObjectMapper JSON =
      new ObjectMapper(
              JsonFactory.builder()
                  .streamReadConstraints(
                      StreamReadConstraints.builder()
                          .maxNestingDepth(16)
                          .maxStringLength(4096)
                          .maxNumberLength(64)
                          .maxNameLength(256)
                          .build())
                  .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
                  .build())
          .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
          .enable(SerializationFeature.INDENT_OUTPUT);

  /** A file that is there and cannot be used. */
  public static final class Unusable extends Exception {
    private static final long serialVersionUID = 1L;

    /** Whether it is another module's, and good for that. */
    private final boolean foreign;

    /**
     * Says why.
     *
     * @param why a readable clause
     */
    public Unusable(String why) {
      this(why, false);
    }

    private Unusable(String why, boolean foreign) {
      super(why);
      this.foreign = foreign;
    }
  }

  /**
   * What a backend keeps of a plan.
   *
   * @param <E> its entries
   */
  public interface Form<E extends TunedEntry> {
    /**
     * {@return an entry}
     *
     * @param node its object; {@link TuningFile#number} and the like read it
     * @throws Unusable naming what is wrong
     */
    E read(JsonNode node) throws Unusable;

    /**
     * Writes what {@link #read} reads.
     *
     * @param entry to write
     * @param to an empty object
     */
    void write(E entry, ObjectNode to);
  }

  private final String module;
  private final Form<E> form;

  /**
   * A kind of file.
   *
   * @param module whose choices, like {@code backend-triton}
   * @param form of an entry
   */
  public TuningFile(String module, Form<E> form) {
    this.module = module;
    this.form = form;
  }

  /**
   * Reads a file.
   *
   * @param file any
   * @return its tables; empty if there is no such file
   * @throws Unusable with the reason
   */
  public Optional<List<TunedTable<E>>> read(Path file) throws Unusable {
    byte[] bytes;
    try {
      bytes = FileUpdate.read(file, MAX_BYTES).orElse(null);
    } catch (IOException | SecurityException e) {
      throw new Unusable("it " + e.getMessage());
    }
    if (bytes == null) {
      return Optional.empty();
    }
    try {
      return Optional.of(parse(JSON.readTree(bytes)));
    } catch (JsonProcessingException e) {
      throw new Unusable("it is not JSON: " + e.getOriginalMessage());
    } catch (IOException e) {
      throw new Unusable("it is not JSON: " + e.getMessage());
    }
  }

  private List<TunedTable<E>> parse(JsonNode root) throws Unusable {
    if (!root.isObject() || !module.equals(root.path("module").asText())) {
      JsonNode other = root.path("module");
      throw new Unusable(
          "it holds nothing of "
              + module
              + (other.isTextual() ? ", it is " + shortened(other.textValue()) + "'s" : ""),
          other.isTextual());
    }
    JsonNode format = root.path("format");
    if (!format.isInt() || format.intValue() != FORMAT) {
      throw new Unusable(
          "it is of format " + shortened(format.toString()) + ", this version reads " + FORMAT);
    }
    List<TunedTable<E>> tables = new ArrayList<>();
    for (JsonNode t : array(root, "tables", MAX_TABLES)) {
      TunedTable.Key key =
          new TunedTable.Key(
              text(t, "device"),
              text(t, "capability"),
              text(t, "kernels"),
              text(t, "weights"),
              text(t, "activation"),
              number(t, "experts"),
              number(t, "top_k"),
              number(t, "hidden"),
              number(t, "intermediate"));
      List<E> entries = new ArrayList<>();
      for (JsonNode e : array(t, "entries", MAX_ENTRIES)) {
        entries.add(form.read(e));
      }
      tables.add(new TunedTable<>(key, entries));
    }
    return tables;
  }

  private static JsonNode array(JsonNode node, String key, int most) throws Unusable {
    JsonNode value = node.path(key);
    if (!value.isArray() || value.size() > most) {
      throw new Unusable("\"" + key + "\" must be a list of at most " + most);
    }
    return value;
  }

  /**
   * {@return a text of an entry}
   *
   * @param node the entry
   * @param key of the text
   * @throws Unusable if it is none, or too long
   */
  public static String text(JsonNode node, String key) throws Unusable {
    JsonNode value = node.path(key);
    if (!value.isTextual() || value.textValue().length() > MAX_TEXT) {
      throw wrong(key, value, "a text of at most " + MAX_TEXT + " characters");
    }
    return value.textValue();
  }

  /**
   * {@return a number of an entry, 0 or more}
   *
   * @param node the entry
   * @param key of the number
   * @throws Unusable if it is none
   */
  public static int number(JsonNode node, String key) throws Unusable {
    return number(key, node.path(key));
  }

  /**
   * {@return a number of a list of an entry, 0 or more}
   *
   * @param key of the list, for the message
   * @param value the number
   * @throws Unusable if it is none
   */
  public static int number(String key, JsonNode value) throws Unusable {
    if (!value.isInt() || value.intValue() < 0 || value.intValue() > MAX_SIZE) {
      throw wrong(key, value, "0.." + MAX_SIZE);
    }
    return value.intValue();
  }

  /**
   * {@return a time of an entry}
   *
   * @param node the entry
   * @param key of the time
   * @throws Unusable if it is none
   */
  public static double micros(JsonNode node, String key) throws Unusable {
    JsonNode value = node.path(key);
    if (!value.isNumber() || !(value.doubleValue() >= 0) || value.doubleValue() > 1e12) {
      throw wrong(key, value, "a time in microseconds");
    }
    return value.doubleValue();
  }

  /**
   * {@return what to throw for a value that cannot be used}
   *
   * @param key of the value
   * @param value as it is
   * @param accepted a readable clause
   */
  public static Unusable wrong(String key, JsonNode value, String accepted) {
    return new Unusable(
        "\""
            + key
            + "\" is "
            + (value.isMissingNode() ? "missing" : shortened(value.toString()))
            + ", must be "
            + accepted);
  }

  private static String shortened(String text) {
    String plain = text.replaceAll("\\p{Cntrl}", " ");
    return plain.length() <= 40 ? plain : plain.substring(0, 40) + "...";
  }

  /**
   * Adds entries to a file, or replaces those of the same sizes. The file is replaced in one step,
   * and what others add at the same time stays ({@link FileUpdate}). A damaged file is kept beside
   * it, with {@code .bak} at the end of its name.
   *
   * @param file where to; its directory is made if it is not there
   * @param found the entries
   * @throws IOException if it cannot be written, is no regular file, or holds another module's
   *     entries
   */
  public void merge(Path file, TunedTable<E> found) throws IOException {
    FileUpdate.run(file, target -> merged(target, found));
  }

  private byte[] merged(Path file, TunedTable<E> found) throws IOException {
    List<TunedTable<E>> tables;
    try {
      tables = new ArrayList<>(read(file).orElse(List.of()));
    } catch (Unusable e) {
      if (e.foreign || !Files.isRegularFile(file) || !Files.isReadable(file)) {
        throw new IOException(file + " is not replaced: " + e.getMessage(), e);
      }
      Files.copy(file, free(file)); // the file itself stays until the new one replaces it
      tables = new ArrayList<>();
    }
    List<E> entries = new ArrayList<>();
    tables.stream()
        .filter(t -> t.key().equals(found.key()))
        .forEach(t -> entries.addAll(t.entries()));
    entries.addAll(found.entries());
    tables.removeIf(t -> t.key().equals(found.key()));
    tables.add(new TunedTable<>(found.key(), entries));
    byte[] bytes = JSON.writeValueAsBytes(json(tables));
    if (bytes.length > MAX_BYTES || tables.size() > MAX_TABLES) {
      // Nothing reads what was measured with kernels that are gone.
      tables.removeIf(t -> !t.key().sameMachine(found.key()));
      bytes = JSON.writeValueAsBytes(json(tables));
    }
    if (bytes.length > MAX_BYTES || entries.size() > MAX_ENTRIES) {
      throw new IOException(file + " would hold more than it may; remove it, or name another");
    }
    return bytes;
  }

  /** A name for what is kept: it replaces nothing that was kept before. */
  private static Path free(Path file) {
    Path to = file.resolveSibling(file.getFileName() + ".bak");
    for (int i = 2; Files.exists(to, LinkOption.NOFOLLOW_LINKS); i++) {
      to = file.resolveSibling(file.getFileName() + ".bak" + i);
    }
    return to;
  }

  private ObjectNode json(List<TunedTable<E>> tables) {
    ObjectNode root = JSON.createObjectNode();
    root.put("format", FORMAT);
    root.put("module", module);
    ArrayNode all = root.putArray("tables");
    for (TunedTable<E> table : tables) {
      TunedTable.Key k = table.key();
      ObjectNode t = all.addObject();
      t.put("device", k.device());
      t.put("capability", k.capability());
      t.put("kernels", k.kernels());
      t.put("weights", k.weights());
      t.put("activation", k.activation());
      t.put("experts", k.experts());
      t.put("top_k", k.topK());
      t.put("hidden", k.hidden());
      t.put("intermediate", k.intermediate());
      ArrayNode entries = t.putArray("entries");
      for (E e : table.entries()) {
        form.write(e, entries.addObject());
      }
    }
    return root;
  }

  /**
   * {@return a time as files have it, to hundredths}
   *
   * @param micros the time
   */
  public static double rounded(double micros) {
    return Math.round(micros * 100) / 100.0;
  }

  /**
   * {@return what changes when any compiled kernel does: the first {@value #HASH_BYTES} bytes of a
   * SHA-256 over their hashes, in hexadecimal}
   *
   * @param kernels all of them
   */
  public static String kernelSet(Stream<KernelSpec> kernels) {
    try {
      MessageDigest sha = MessageDigest.getInstance("SHA-256");
      kernels
          .map(KernelSpec::ptxSha256)
          .sorted()
          .forEach(h -> sha.update(h.getBytes(StandardCharsets.US_ASCII)));
      return HexFormat.of().formatHex(sha.digest(), 0, HASH_BYTES);
    } catch (NoSuchAlgorithmException e) {
      throw new IllegalStateException("every Java has SHA-256", e);
    }
  }
}
