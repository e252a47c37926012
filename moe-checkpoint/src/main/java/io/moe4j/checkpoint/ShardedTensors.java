package io.moe4j.checkpoint;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.api.CheckpointException;
import io.moe4j.api.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.file.Files;
import java.nio.file.InvalidPathException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.SortedMap;
import java.util.TreeMap;
import java.util.function.Predicate;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;

/**
 * The tensors of a directory, from one file or from shards: {@code NAME.safetensors}, else what
 * {@code NAME.safetensors.index.json} lists, else the shards that are there. What is wrong with a
 * single tensor (it is in no shard, in two, of an element type that cannot be read) is kept with
 * its name: it matters only to those who need that tensor.
 */
final class ShardedTensors {
  private static final String SUFFIX = ".safetensors";
  private static final Pattern NUMBERED =
      Pattern.compile("(.*)-(\\d{5})-of-(\\d{5})\\.safetensors");

  private final List<SafetensorsFile> files = new ArrayList<>();
  private final Map<String, Tensor> tensors = new LinkedHashMap<>();
  private final Map<String, String> problems = new LinkedHashMap<>();
  private final List<String> notes = new ArrayList<>();

  private ShardedTensors() {}

  List<SafetensorsFile> files() {
    return Collections.unmodifiableList(files);
  }

  Map<String, Tensor> tensors() {
    return Collections.unmodifiableMap(tensors);
  }

  /** Tensors that cannot be had, and why, in words that go on after the name. */
  Map<String, String> problems() {
    return Collections.unmodifiableMap(problems);
  }

  List<String> notes() {
    return Collections.unmodifiableList(notes);
  }

  long bytes() {
    return files.stream().mapToLong(SafetensorsFile::fileSize).sum();
  }

  /**
   * Opens a model's tensors.
   *
   * @param dir the directory
   * @param arena owns the mappings
   * @param progress told about each file
   */
  static ShardedTensors open(Path dir, Arena arena, LoadProgress progress) {
    if (!Files.isDirectory(dir)) {
      throw new CheckpointException(
          dir + (Files.exists(dir) ? " is not a directory" : " does not exist"));
    }
    return open(dir, "model", n -> true, arena, progress);
  }

  /**
   * Opens the tensors of one name in a directory.
   *
   * @param dir the directory
   * @param name {@code model} or {@code adapter_model}
   * @param shard which files are its shards where neither one file nor an index is there
   * @param arena owns the mappings
   * @param progress told about each file
   */
  static ShardedTensors open(
      Path dir, String name, Predicate<String> shard, Arena arena, LoadProgress progress) {
    ShardedTensors all = new ShardedTensors();
    Path single = dir.resolve(name + SUFFIX);
    Path index = dir.resolve(name + SUFFIX + ".index.json");
    if (Files.exists(single)) {
      if (Files.exists(index)) {
        all.notes.add(
            single.getFileName()
                + " and "
                + index.getFileName()
                + " are both there; "
                + single.getFileName()
                + " was read");
      }
      all.read(new TreeMap<>(Map.of(name + SUFFIX, single)), Map.of(), arena, progress);
    } else if (Files.exists(index)) {
      all.readIndexed(dir, index, arena, progress);
    } else {
      all.read(listFiles(dir, name, shard), Map.of(), arena, progress);
    }
    all.noteProblems();
    return all;
  }

  private void readIndexed(Path dir, Path index, Arena arena, LoadProgress progress) {
    Map<String, String> shardOf = readIndex(index);
    SortedMap<String, Path> shards = new TreeMap<>();
    String missing = null;
    for (String name : new TreeMap<>(invert(shardOf)).keySet()) {
      Path shard = resolve(dir, name, index);
      if (Files.exists(shard)) {
        shards.put(name, shard);
      } else if (missing == null) {
        missing = name;
      }
    }
    if (shards.isEmpty()) {
      throw new CheckpointException(
          dir
              + " holds none of the shards that "
              + index.getFileName()
              + " names, like "
              + missing);
    }
    read(shards, shardOf, arena, progress);
    Map<String, String> foundIn = new HashMap<>();
    for (SafetensorsFile file : files) {
      String name = String.valueOf(file.path().getFileName());
      file.tensors().keySet().forEach(t -> foundIn.putIfAbsent(t, name));
      file.opaque().keySet().forEach(t -> foundIn.putIfAbsent(t, name));
    }
    for (Map.Entry<String, String> e : shardOf.entrySet()) {
      String tensor = e.getKey();
      if (tensors.containsKey(tensor) || problems.containsKey(tensor)) {
        continue;
      }
      String actual = foundIn.get(tensor);
      problems.put(
          tensor,
          "is in "
              + StrictJson.shorten(e.getValue())
              + " by "
              + index.getFileName()
              + ", but "
              + (!shards.containsKey(e.getValue())
                  ? "that file does not exist: a shard is missing"
                  : "it is in " + (actual == null ? "no shard" : actual)));
    }
  }

  /** One remark on all tensors that cannot be had; whoever needs one refuses. */
  private void noteProblems() {
    if (!problems.isEmpty()) {
      Map.Entry<String, String> first = problems.entrySet().iterator().next();
      notes.add(
          problems.size()
              + (problems.size() == 1 ? " tensor that is" : " tensors that are")
              + " not needed cannot be read: '"
              + StrictJson.shorten(first.getKey())
              + "' "
              + first.getValue()
              + (problems.size() == 1 ? "" : ", and the like"));
    }
  }

  private static Map<String, String> invert(Map<String, String> shardOf) {
    Map<String, String> shards = new HashMap<>();
    shardOf.forEach((tensor, shard) -> shards.putIfAbsent(shard, tensor));
    return shards;
  }

  private static Map<String, String> readIndex(Path index) {
    ObjectNode json = StrictJson.readObject(index, StrictJson.MAX_INDEX_BYTES);
    if (!(json.get("weight_map") instanceof ObjectNode map) || map.isEmpty()) {
      throw new CheckpointException(
          index + ": 'weight_map' must be a JSON object that names a file for each tensor");
    }
    Map<String, String> shardOf = HashMap.newHashMap(map.size());
    // Thousands of tensors name the same few files: one String each.
    Map<String, String> names = new HashMap<>();
    for (Map.Entry<String, JsonNode> e : map.properties()) {
      if (!e.getValue().isTextual()) {
        throw new CheckpointException(
            index
                + ": the file of '"
                + StrictJson.shorten(e.getKey())
                + "' is "
                + JsonTree.text(e.getValue())
                + ", must be a string");
      }
      String file = e.getValue().textValue();
      if (names.putIfAbsent(file, file) == null) {
        requirePlainName(index, e.getKey(), file);
      }
      shardOf.put(e.getKey(), names.getOrDefault(file, file));
    }
    return shardOf;
  }

  /** A shard lies beside its index; anything that could lead elsewhere is refused by its name. */
  private static void requirePlainName(Path index, String tensor, String file) {
    boolean plain = file.endsWith(SUFFIX) && file.length() > SUFFIX.length();
    for (int i = 0; i < file.length() && plain; i++) {
      char c = file.charAt(i);
      plain = c != '/' && c != '\\' && c != ':' && !Character.isISOControl(c);
    }
    if (!plain || file.startsWith(".") || file.length() > 255) {
      throw new CheckpointException(
          index
              + ": the file of '"
              + StrictJson.shorten(tensor)
              + "' is '"
              + StrictJson.shorten(file)
              + "'; accepted are plain names of .safetensors files in the same directory");
    }
  }

  private static Path resolve(Path dir, String name, Path index) {
    try {
      return dir.resolve(name);
    } catch (InvalidPathException e) {
      throw new CheckpointException(
          index
              + " names the file '"
              + StrictJson.shorten(name)
              + "', which cannot be a file's name here (file names are "
              + System.getProperty("sun.jnu.encoding", "of an unknown encoding")
              + "; with LANG=C.UTF-8 or the like any text can): "
              + e.getReason(),
          e);
    }
  }

  private static SortedMap<String, Path> listFiles(
      Path dir, String wanted, Predicate<String> shard) {
    TreeMap<String, Path> names = new TreeMap<>();
    List<String> others = new ArrayList<>();
    try (Stream<Path> paths = Files.list(dir)) {
      paths.forEach(p -> {
        String n = String.valueOf(p.getFileName());
        if (n.endsWith(SUFFIX) && !n.startsWith(".") && shard.test(n)) {
          names.put(n, p);
        } else {
          others.add(n);
        }
      });
    } catch (IOException e) {
      throw new CheckpointException(dir + " cannot be listed: " + Folders.reason(e), e);
    }
    if (names.isEmpty()) {
      throw new CheckpointException(
          dir + " holds no .safetensors file" + otherForm(others, wanted));
    }
    requireComplete(dir, names);
    return names;
  }

  /** Every series of numbered shards whose files are there is whole. */
  static void requireComplete(Path dir, Map<String, Path> names) {
    Map<String, Integer> counts = new HashMap<>();
    for (String name : names.keySet()) {
      Matcher m = NUMBERED.matcher(name);
      if (m.matches()) {
        counts.putIfAbsent(m.group(1) + "\n" + m.group(3), Integer.parseInt(m.group(3)));
      }
    }
    counts.forEach((series, count) -> {
      String prefix = series.substring(0, series.indexOf('\n'));
      for (int i = 1; i <= count; i++) {
        String name = "%s-%05d-of-%05d%s".formatted(prefix, i, count, SUFFIX);
        if (!names.containsKey(name)) {
          throw new CheckpointException(
              dir
                  + " holds shards of "
                  + StrictJson.shorten(prefix)
                  + " but not "
                  + StrictJson.shorten(name)
                  + ": a shard is missing");
        }
      }
    });
  }

  private static String otherForm(List<String> others, String wanted) {
    if (others.stream().anyMatch(n -> n.endsWith(".bin") || n.endsWith(".pt"))) {
      return ", only pickled weights, which are not read; save the model as safetensors";
    }
    if (others.stream().anyMatch(n -> n.endsWith(".gguf"))) {
      return ", only a GGUF file, which is not read here; use the model's safetensors";
    }
    return "; looked for " + wanted + SUFFIX + " and " + wanted + SUFFIX + ".index.json";
  }

  private void read(
      SortedMap<String, Path> shards,
      Map<String, String> shardOf,
      Arena arena,
      LoadProgress progress) {
    Map<String, String> foundIn = new HashMap<>();
    int stale = 0;
    long count = 0;
    long bytes = 0;
    for (Map.Entry<String, Path> shard : shards.entrySet()) {
      String name = shard.getKey();
      SafetensorsFile file = SafetensorsFile.open(shard.getValue(), arena);
      files.add(file);
      bytes += file.fileSize();
      count += file.tensors().size() + file.opaque().size();
      if (count > SafetensorsHeader.maxTensors(bytes)) {
        throw new CheckpointException(
            shard.getValue()
                + ": the files up to this one have "
                + count
                + " tensors in "
                + bytes
                + " bytes; accepted are at most "
                + SafetensorsHeader.maxTensors(bytes));
      }
      for (Map.Entry<String, String> e : file.opaque().entrySet()) {
        if (!name.equals(shardOf.getOrDefault(e.getKey(), name))) {
          stale++;
        } else if (isFirst(e.getKey(), name, foundIn)) {
          problems.put(e.getKey(), "is " + e.getValue() + ", which cannot be read here");
        }
      }
      for (Map.Entry<String, Tensor> e : file.tensors().entrySet()) {
        if (!name.equals(shardOf.getOrDefault(e.getKey(), name))) {
          stale++;
        } else if (isFirst(e.getKey(), name, foundIn)) {
          tensors.put(e.getKey(), e.getValue());
        }
      }
      progress.onProgress(name, files.size(), shards.size());
    }
    tensors.keySet().removeAll(problems.keySet());
    if (stale > 0) {
      notes.add(
          stale
              + (stale == 1 ? " tensor is" : " tensors are")
              + " also in shards that the index does not name for them; the index decides");
    }
  }

  /** Two copies of a tensor, and nothing that says which one counts: neither does. */
  private boolean isFirst(String tensor, String shard, Map<String, String> foundIn) {
    String before = foundIn.put(tensor, shard);
    if (before == null) {
      return true;
    }
    problems.put(tensor, "is in " + before + " and in " + shard + "; it must be in one shard only");
    return false;
  }
}
