package io.moe4j.backend.triton;

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
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.AtomicMoveNotSupportedException;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.Optional;
import java.util.stream.Stream;

/**
 * The file of tuned tiles. JSON, one object: {@code format} 1, {@code module} {@code
 * backend-triton}, and {@code tables}, a list of objects with the components of {@link
 * TunedTable.Key} in snake_case and {@code entries}, whose objects have those of {@link
 * TunedEntry}; a shrink is {@code [ranks, step, splits]}. It may come from anywhere: size, depth
 * and every number are bounded, and an entry is used only if the search could have found it.
 */
final class TuningFile {
  private static final int FORMAT = 1;
  private static final String MODULE = "backend-triton";
  private static final int MAX_BYTES = 4 << 20;
  private static final int MAX_TABLES = 1024;
  private static final int MAX_ENTRIES = 4096;
  private static final int MAX_TEXT = 256;
  private static final int MAX_SIZE = 1 << 24;
  private static final int HASH_BYTES = 8;
  private static final int MAX_TOKENS = 1 << 20;
  private static final int MAX_ADAPTERS = 1 << 16;
  private static final int MAX_RANK = 1 << 14;
  private static final String TILE = "[1-9]\\d{0,3}x[1-9]\\d{0,3}x[1-9]\\d{0,3}-[a-z0-9-]+";

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

  private TuningFile() {}

  /** A file that is there and cannot be used. */
  static final class Unusable extends Exception {
    private static final long serialVersionUID = 1L;

    Unusable(String why) {
      super(why);
    }
  }

  /**
   * Reads a file.
   *
   * @param file any
   * @return its tables; empty if there is no such file
   * @throws Unusable with the reason
   */
  static Optional<List<TunedTable>> read(Path file) throws Unusable {
    byte[] bytes;
    try {
      if (!Files.exists(file)) {
        return Optional.empty();
      }
      if (!Files.isRegularFile(file)) {
        throw new Unusable("it is no file");
      }
      try (InputStream in = Files.newInputStream(file)) {
        bytes = in.readNBytes(MAX_BYTES + 1);
      }
    } catch (NoSuchFileException e) {
      return Optional.empty();
    } catch (IOException | SecurityException e) {
      throw new Unusable("it cannot be read: " + e);
    }
    if (bytes.length > MAX_BYTES) {
      throw new Unusable("it is larger than " + MAX_BYTES + " bytes");
    }
    try {
      return Optional.of(parse(JSON.readTree(bytes)));
    } catch (JsonProcessingException e) {
      throw new Unusable("it is not JSON: " + e.getOriginalMessage());
    } catch (IOException e) {
      throw new Unusable("it is not JSON: " + e.getMessage());
    }
  }

  private static List<TunedTable> parse(JsonNode root) throws Unusable {
    if (!root.isObject() || !MODULE.equals(root.path("module").asText())) {
      throw new Unusable("it holds no tiles of " + MODULE);
    }
    JsonNode format = root.path("format");
    if (!format.isInt() || format.intValue() != FORMAT) {
      throw new Unusable(
          "it is of format " + shortened(format.toString()) + ", this version reads " + FORMAT);
    }
    List<TunedTable> tables = new ArrayList<>();
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
      List<TunedEntry> entries = new ArrayList<>();
      for (JsonNode e : array(t, "entries", MAX_ENTRIES)) {
        entries.add(
            new TunedEntry(
                number(e, "tokens"),
                number(e, "adapters"),
                number(e, "rank"),
                text(e, "w13"),
                text(e, "w2"),
                e.path("sums").asBoolean(),
                e.path("permute").asBoolean(),
                number(e, "group_tiles"),
                number(e, "shrink_rows"),
                width(e, "shrink13"),
                width(e, "shrink2"),
                micros(e, "us"),
                micros(e, "built_in_us")));
      }
      tables.add(new TunedTable(key, entries));
    }
    return tables;
  }

  private static JsonNode array(JsonNode node, String key, int most) throws Unusable {
    JsonNode value = node.path(key);
    if (!value.isArray() || value.size() > most) {
      throw new Unusable("\"" + key + "\" is no list of at most " + most);
    }
    return value;
  }

  private static String text(JsonNode node, String key) throws Unusable {
    JsonNode value = node.path(key);
    if (!value.isTextual() || value.textValue().length() > MAX_TEXT) {
      throw wrong(key, value, "a text of at most " + MAX_TEXT + " characters");
    }
    return value.textValue();
  }

  private static int number(JsonNode node, String key) throws Unusable {
    return number(key, node.path(key));
  }

  private static int number(String key, JsonNode value) throws Unusable {
    if (!value.isInt() || value.intValue() < 0 || value.intValue() > MAX_SIZE) {
      throw wrong(key, value, "0.." + MAX_SIZE);
    }
    return value.intValue();
  }

  private static TunedEntry.Width width(JsonNode node, String key) throws Unusable {
    JsonNode value = node.path(key);
    if (value.isMissingNode()) {
      return TunedEntry.Width.NONE;
    }
    if (!value.isArray() || value.size() != 3) {
      throw wrong(key, value, "[ranks, step, splits]");
    }
    return new TunedEntry.Width(
        number(key, value.path(0)), number(key, value.path(1)), number(key, value.path(2)));
  }

  private static double micros(JsonNode node, String key) throws Unusable {
    JsonNode value = node.path(key);
    if (!value.isNumber() || !(value.doubleValue() >= 0) || value.doubleValue() > 1e12) {
      throw wrong(key, value, "a time in microseconds");
    }
    return value.doubleValue();
  }

  private static Unusable wrong(String key, JsonNode value, String accepted) {
    return new Unusable(
        "\"" + key + "\" is " + shortened(value.toString()) + ", must be " + accepted);
  }

  private static String shortened(String text) {
    String plain = text.replaceAll("\\p{Cntrl}", " ");
    return plain.length() <= 40 ? plain : plain.substring(0, 40) + "...";
  }

  /** {@return whether an entry's numbers and names can be computed with at all} */
  static boolean plausible(TunedEntry e) {
    boolean lora = e.adapters() > 0;
    return e.tokens() > 0
        && e.tokens() <= MAX_TOKENS
        && e.adapters() <= MAX_ADAPTERS
        && e.rank() <= MAX_RANK
        && (e.rank() > 0) == lora
        && e.w13().matches(TILE)
        && e.w2().matches(TILE)
        && (!lora || (positive(e.shrink13()) && positive(e.shrink2())));
  }

  private static boolean positive(TunedEntry.Width w) {
    return w.ranks() > 0 && w.step() > 0 && w.splits() > 0;
  }

  /**
   * Adds entries to a file, or replaces those of the same sizes. The file is replaced in one step;
   * one that cannot be used is kept beside it, with {@code .bak} at the end of its name.
   *
   * @param file where to; its directory is made if it is not there
   * @param found the entries
   * @throws IOException if it cannot be written
   */
  static void merge(Path file, TunedTable found) throws IOException {
    Path directory = file.toAbsolutePath().getParent();
    if (directory != null) {
      Files.createDirectories(directory);
    }
    List<TunedTable> tables;
    try {
      tables = new ArrayList<>(read(file).orElse(List.of()));
    } catch (Unusable e) {
      Files.move(
          file,
          file.resolveSibling(file.getFileName() + ".bak"),
          StandardCopyOption.REPLACE_EXISTING);
      tables = new ArrayList<>();
    }
    List<TunedEntry> entries = new ArrayList<>();
    tables.stream()
        .filter(t -> t.key().equals(found.key()))
        .forEach(t -> entries.addAll(t.entries()));
    entries.addAll(found.entries());
    tables.removeIf(t -> t.key().equals(found.key()));
    tables.add(new TunedTable(found.key(), entries));
    byte[] bytes = JSON.writeValueAsBytes(json(tables));
    if (bytes.length > MAX_BYTES || tables.size() > MAX_TABLES) {
      // Nothing reads what was measured with kernels that are gone.
      tables.removeIf(t -> !t.key().sameMachine(found.key()));
      bytes = JSON.writeValueAsBytes(json(tables));
    }
    if (bytes.length > MAX_BYTES || entries.size() > MAX_ENTRIES) {
      throw new IOException(file + " would hold more than it may; remove it, or name another");
    }
    replace(file, bytes);
  }

  private static void replace(Path file, byte[] bytes) throws IOException {
    Path fresh = file.resolveSibling(file.getFileName() + ".tmp-" + ProcessHandle.current().pid());
    try {
      Files.write(fresh, bytes);
      try {
        Files.move(
            fresh, file, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
      } catch (AtomicMoveNotSupportedException e) {
        Files.move(fresh, file, StandardCopyOption.REPLACE_EXISTING);
      }
    } finally {
      Files.deleteIfExists(fresh);
    }
  }

  private static ObjectNode json(List<TunedTable> tables) {
    ObjectNode root = JSON.createObjectNode();
    root.put("format", FORMAT);
    root.put("module", MODULE);
    ArrayNode all = root.putArray("tables");
    for (TunedTable table : tables) {
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
      for (TunedEntry e : table.entries()) {
        ObjectNode n = entries.addObject();
        n.put("tokens", e.tokens());
        n.put("adapters", e.adapters());
        n.put("rank", e.rank());
        n.put("w13", e.w13());
        n.put("w2", e.w2());
        n.put("sums", e.sums());
        n.put("permute", e.permute());
        n.put("group_tiles", e.groupTiles());
        n.put("shrink_rows", e.shrinkRows());
        if (e.adapters() > 0) {
          put(n.putArray("shrink13"), e.shrink13());
          put(n.putArray("shrink2"), e.shrink2());
        }
        n.put("us", rounded(e.micros()));
        n.put("built_in_us", rounded(e.builtInMicros()));
      }
    }
    return root;
  }

  private static void put(ArrayNode to, TunedEntry.Width w) {
    to.add(w.ranks()).add(w.step()).add(w.splits());
  }

  private static double rounded(double micros) {
    return Math.round(micros * 100) / 100.0;
  }

  /**
   * {@return what changes when any compiled kernel does: the first {@value #HASH_BYTES} bytes of a
   * SHA-256 over their hashes, in hexadecimal}
   *
   * @param libraries the kernels
   */
  static String kernelSet(Stream<KernelSpec> kernels) {
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
