package io.moe4j.integration;

import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.checkpoint.AdapterPolicy;
import io.moe4j.checkpoint.MoeCheckpoint;
import io.moe4j.checkpoint.PeftAdapter;
import io.moe4j.checkpoint.SafetensorsFile;
import io.moe4j.lora.AdapterRegistry;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import java.util.TreeMap;
import java.util.stream.Stream;

/**
 * One of the recorded models under {@code testdata/fixtures}: a transformers checkpoint, its PEFT
 * adapters, loaded, and what the two computed.
 */
final class Fixture implements AutoCloseable {
  final String name;
  final MoeCheckpoint checkpoint;
  final SafetensorsFile io;
  final AdapterRegistry registry;

  /** Who can be in a mixed batch, by number: {@code base} first. */
  final List<String> order;

  private final TreeMap<Integer, MoeConfig> configs = new TreeMap<>();

  private Fixture(Path directory) {
    name = String.valueOf(directory.getFileName());
    checkpoint = MoeCheckpoint.open(directory.resolve("model"));
    io = SafetensorsFile.open(directory.resolve("io.safetensors"));
    order = order("mixed");
    List<PeftAdapter> adapters = new ArrayList<>();
    for (String who : order.subList(1, order.size())) {
      Path files = directory.resolve("adapters").resolve(who);
      adapters.add(PeftAdapter.load(files, who, checkpoint, AdapterPolicy.DEFAULT));
    }
    int rank = adapters.stream().mapToInt(a -> a.adapter().maxRank()).max().orElseThrow();
    LoraConfig lora = new LoraConfig(adapters.size(), rank);
    for (int layer : checkpoint.layers()) {
      configs.put(layer, checkpoint.config(layer).toBuilder().lora(lora).build());
    }
    registry = AdapterRegistry.builder(configs).build();
    adapters.forEach(a -> registry.load(a.adapter()));
  }

  /** The names of all fixtures. */
  static List<String> names() {
    try (Stream<Path> models = Files.list(root())) {
      return models
          .filter(p -> Files.exists(p.resolve("io.safetensors")))
          .map(p -> String.valueOf(p.getFileName()))
          .sorted()
          .toList();
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  static Fixture open(String name) {
    return new Fixture(root().resolve(name));
  }

  private static Path root() {
    Path at = Path.of("").toAbsolutePath();
    while (at != null) {
      Path fixtures = at.resolve("testdata").resolve("fixtures");
      if (Files.isDirectory(fixtures)) {
        return fixtures;
      }
      at = at.getParent();
    }
    throw new IllegalStateException("no testdata/fixtures above " + Path.of("").toAbsolutePath());
  }

  /** With LoRA on. */
  MoeConfig config(int layer) {
    return Objects.requireNonNull(configs.get(layer));
  }

  /** The names behind the numbers of a mixed batch's assignment. */
  List<String> order(String mixed) {
    String order = Objects.requireNonNull(io.metadata().get(mixed + "_order"));
    return List.of(order.split(",", -1));
  }

  @Override
  public void close() {
    registry.close();
    io.close();
    checkpoint.close();
  }
}
