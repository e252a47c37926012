package io.moe4j.checkpoint;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.api.CheckpointException;
import io.moe4j.api.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.SortedSet;
import java.util.TreeSet;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;

/**
 * The tensors of a checkpoint directory, from one file or from shards: {@code model.safetensors},
 * else what {@code model.safetensors.index.json} lists, else every {@code .safetensors} file there.
 */
final class ShardedTensors {
  static final String SINGLE = "model.safetensors";
  static final String INDEX = "model.safetensors.index.json";
  private static final String SUFFIX = ".safetensors";
  private static final Pattern NUMBERED =
      Pattern.compile("(.*)-(\\d{5})-of-(\\d{5})\\.safetensors");

  private final List<SafetensorsFile> files;
  private final Map<String, Tensor> tensors;

  private ShardedTensors(List<SafetensorsFile> files, Map<String, Tensor> tensors) {
    this.files = List.copyOf(files);
    this.tensors = Collections.unmodifiableMap(tensors);
  }

  List<SafetensorsFile> files() {
    return files;
  }

  Map<String, Tensor> tensors() {
    return tensors;
  }

  long bytes() {
    return files.stream().mapToLong(SafetensorsFile::fileSize).sum();
  }

  static ShardedTensors open(Path dir, Arena arena, LoadProgress progress) {
    if (!Files.isDirectory(dir)) {
      throw new CheckpointException(
          dir + (Files.exists(dir) ? " is not a directory" : " does not exist"));
    }
    Path index = dir.resolve(INDEX);
    if (Files.exists(dir.resolve(SINGLE))) {
      return read(dir, new TreeSet<>(List.of(SINGLE)), Map.of(), arena, progress);
    }
    if (Files.exists(index)) {
      Map<String, String> shardOf = readIndex(index);
      return read(dir, new TreeSet<>(shardOf.values()), shardOf, arena, progress);
    }
    return read(dir, listFiles(dir), Map.of(), arena, progress);
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
            index + ": the file of '" + StrictJson.shorten(e.getKey()) + "' is not a string");
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

  private static SortedSet<String> listFiles(Path dir) {
    TreeSet<String> names = new TreeSet<>();
    boolean pickled;
    try (Stream<Path> paths = Files.list(dir)) {
      List<String> all = paths.map(p -> p.getFileName().toString()).toList();
      all.stream().filter(n -> n.endsWith(SUFFIX) && !n.startsWith(".")).forEach(names::add);
      pickled = all.stream().anyMatch(n -> n.endsWith(".bin") || n.endsWith(".pt"));
    } catch (IOException e) {
      throw new CheckpointException(dir + " cannot be listed: " + e, e);
    }
    if (names.isEmpty()) {
      throw new CheckpointException(
          dir
              + " holds no .safetensors file"
              + (pickled
                  ? ", only pickled weights, which are not read; save the model as safetensors"
                  : "; looked for " + SINGLE + " and " + INDEX));
    }
    for (String name : names) {
      Matcher m = NUMBERED.matcher(name);
      if (m.matches()) {
        int count = Integer.parseInt(m.group(3));
        for (int i = 1; i <= count; i++) {
          String shard = "%s-%05d-of-%05d%s".formatted(m.group(1), i, count, SUFFIX);
          if (!names.contains(shard)) {
            throw new CheckpointException(
                dir + " holds " + name + " but not " + shard + ": a shard is missing");
          }
        }
      }
    }
    return names;
  }

  private static ShardedTensors read(
      Path dir,
      SortedSet<String> names,
      Map<String, String> shardOf,
      Arena arena,
      LoadProgress progress) {
    for (String name : names) {
      if (!Files.exists(dir.resolve(name))) {
        throw new CheckpointException(
            dir.resolve(name) + " does not exist, but " + INDEX + " names it: a shard is missing");
      }
    }
    List<SafetensorsFile> files = new ArrayList<>();
    Map<String, Tensor> tensors = new LinkedHashMap<>();
    Map<String, String> foundIn = new HashMap<>();
    for (String name : names) {
      SafetensorsFile file = SafetensorsFile.open(dir.resolve(name), arena);
      files.add(file);
      file.tensors()
          .forEach((tensor, view) -> {
            String before = foundIn.put(tensor, name);
            if (before != null) {
              throw new CheckpointException(
                  dir
                      + ": tensor '"
                      + StrictJson.shorten(tensor)
                      + "' is in "
                      + before
                      + " and in "
                      + name
                      + "; it must be in one shard only");
            }
            tensors.put(tensor, view);
          });
      progress.onProgress(name, files.size(), names.size());
    }
    shardOf.forEach((tensor, shard) -> {
      String actual = foundIn.get(tensor);
      if (!shard.equals(actual)) {
        throw new CheckpointException(
            dir.resolve(INDEX)
                + " says that tensor '"
                + StrictJson.shorten(tensor)
                + "' is in "
                + shard
                + ", but it is "
                + (actual == null ? "in no shard" : "in " + actual));
      }
    });
    return new ShardedTensors(files, tensors);
  }
}
