package io.moe4j.integration;

import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.device.Device;
import io.moe4j.checkpoint.AdapterPolicy;
import io.moe4j.checkpoint.MoeCheckpoint;
import io.moe4j.checkpoint.PeftAdapter;
import io.moe4j.checkpoint.SafetensorsFile;
import io.moe4j.checkpoint.TensorParallel;
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
import org.jspecify.annotations.Nullable;

/**
 * One of the recorded models under {@code testdata}: a transformers checkpoint, its PEFT adapters,
 * loaded, and what the two computed. {@code fixtures} have logits, choices and mixed batches as
 * well; {@code families} are many and have outputs.
 */
final class Fixture implements AutoCloseable {
  final String name;
  final MoeCheckpoint checkpoint;
  final SafetensorsFile io;
  final AdapterRegistry registry;

  /** Who can be in a mixed batch, by number: {@code base} first. */
  final List<String> order;

  private final List<PeftAdapter> adapters = new ArrayList<>();
  private final TreeMap<Integer, MoeConfig> configs = new TreeMap<>();

  private Fixture(String name) {
    this.name = name;
    Path directory = root().resolve(name);
    checkpoint = MoeCheckpoint.open(directory.resolve("model"));
    io = SafetensorsFile.open(directory.resolve("io.safetensors"));
    order = order("mixed");
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

  /** Like {@code fixtures/olmoe}, {@code families/llama4}. */
  static List<String> names() {
    try (Stream<Path> files = Files.find(root(), 3, (p, a) -> p.endsWith("io.safetensors"))) {
      List<String> names =
          files
              .map(p -> String.valueOf(root().relativize(p.getParent())).replace('\\', '/'))
              .sorted()
              .toList();
      if (names.isEmpty()) {
        throw new IllegalStateException("no io.safetensors in " + root());
      }
      return names;
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  static Fixture open(String name) {
    return new Fixture(name);
  }

  private static Path root() {
    Path at = Path.of("").toAbsolutePath();
    while (at != null) {
      Path testdata = at.resolve("testdata");
      if (Files.isDirectory(testdata.resolve("fixtures"))) {
        return testdata;
      }
      at = at.getParent();
    }
    throw new IllegalStateException("no testdata above " + Path.of("").toAbsolutePath());
  }

  /** With LoRA on. */
  MoeConfig config(int layer) {
    return Objects.requireNonNull(configs.get(layer));
  }

  /** The adapters that one expert-parallel rank holds. */
  AdapterRegistry registryOf(ExpertMap rank) {
    TreeMap<Integer, MoeConfig> local = new TreeMap<>();
    configs.forEach((layer, c) -> local.put(layer, c.toBuilder().expertMap(rank).build()));
    AdapterRegistry out = AdapterRegistry.builder(local).build();
    adapters.forEach(a -> out.load(a.localExperts(rank)));
    return out;
  }

  /** The adapters that one of several ranks holds. */
  AdapterRegistry registryOf(ParallelConfig rank) {
    return registryOf(rank, null);
  }

  /** The adapters that one of several ranks holds, in slots on a device; null = on the host. */
  AdapterRegistry registryOf(ParallelConfig rank, @Nullable Device device) {
    TreeMap<Integer, MoeConfig> local = new TreeMap<>();
    configs.forEach((layer, c) -> local.put(layer, TensorParallel.config(c, rank)));
    AdapterRegistry.Builder builder = AdapterRegistry.builder(local);
    AdapterRegistry out = (device == null ? builder : builder.device(device)).build();
    int experts = configs.firstEntry().getValue().numExperts();
    ExpertMap map = ExpertMap.linear(experts, rank.epSize(), rank.epRank());
    adapters.forEach(a -> out.load(TensorParallel.of(rank).adapter(a.localExperts(map))));
    return out;
  }

  /** All adapters, in slots on a device. */
  AdapterRegistry registryOn(Device device) {
    AdapterRegistry out = AdapterRegistry.builder(configs).device(device).build();
    adapters.forEach(a -> out.load(a.adapter()));
    return out;
  }

  boolean has(String tensor) {
    return io.tensors().containsKey(tensor);
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
