package io.moe4j.cli;

import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.stream.IntStream;
import java.util.stream.Stream;

/**
 * The bundled sample: small models as Hugging Face transformers saved them, adapters as PEFT wrote
 * them, and what transformers and PEFT computed with both. Carried in this jar; extracted to a
 * temporary directory, because checkpoints are read by mapping files.
 */
final class Sample implements AutoCloseable {
  /**
   * One model of the sample.
   *
   * @param name folder, and model_type
   * @param about a one-line description
   * @param modelFiles what its checkpoint consists of
   * @param adapters in the order that the recorded assignment counts them, from 1
   * @param recorded which recorded mix to compare with
   */
  record Model(
      String name, String about, List<String> modelFiles, List<String> adapters, String recorded) {}

  static final List<Model> MODELS =
      List.of(
          new Model(
              "qwen3_moe",
              "softmax routing, sharded checkpoint; adapters of rank 3 to 16, three dtypes",
              Stream.concat(
                      Stream.of("config.json", "model.safetensors.index.json"),
                      IntStream.rangeClosed(1, 6)
                          .mapToObj(i -> "model-0000" + i + "-of-00006.safetensors"))
                  .toList(),
              List.of("a", "b", "c", "d", "e", "u"),
              "mixed_peft"),
          new Model(
              "deepseek_v3",
              "grouped sigmoid routing, shared experts; fused and per-expert adapters",
              List.of("config.json", "model.safetensors"),
              List.of("a", "b", "c", "a_2d", "m_2d"),
              "mixed"));

  private final Path directory;
  private final OnInterrupt interrupted;

  private Sample(Path directory) {
    this.directory = directory;
    this.interrupted = OnInterrupt.run(this::delete);
  }

  static Sample extract() {
    try {
      Sample sample = new Sample(Files.createTempDirectory("moe-sample-"));
      try {
        for (Model m : MODELS) {
          sample.extract(m);
        }
        return sample;
      } catch (IOException | RuntimeException e) {
        sample.close();
        throw e;
      }
    } catch (IOException e) {
      throw new CliException(
          ExitCode.OUTPUT,
          "the sample could not be extracted to "
              + System.getProperty("java.io.tmpdir")
              + ": "
              + e
              + ". MOE_JAVA_OPTS=-Djava.io.tmpdir=DIR takes another place.",
          e);
    }
  }

  private void extract(Model m) throws IOException {
    copy(m.name() + "/io.safetensors");
    for (String file : m.modelFiles()) {
      copy(m.name() + "/model/" + file);
    }
    for (String adapter : m.adapters()) {
      copy(m.name() + "/adapters/" + adapter + "/adapter_config.json");
      copy(m.name() + "/adapters/" + adapter + "/adapter_model.safetensors");
    }
  }

  private void copy(String name) throws IOException {
    Path target = directory.resolve(name);
    Path parent = target.getParent();
    if (parent != null) {
      Files.createDirectories(parent);
    }
    try (InputStream in = Sample.class.getResourceAsStream("sample/" + name)) {
      if (in == null) {
        throw new IOException("sample/" + name + " is missing from the moe-cli jar");
      }
      Files.copy(in, target);
    }
  }

  Path model(Model m) {
    return directory.resolve(m.name()).resolve("model");
  }

  Path adapter(Model m, String name) {
    return directory.resolve(m.name()).resolve("adapters").resolve(name);
  }

  Path recorded(Model m) {
    return directory.resolve(m.name()).resolve("io.safetensors");
  }

  @Override
  public void close() {
    delete();
    interrupted.close();
  }

  private void delete() {
    List<Path> all = new ArrayList<>();
    try (Stream<Path> tree = Files.walk(directory)) {
      tree.forEach(all::add);
      all.sort(Comparator.reverseOrder());
      for (Path p : all) {
        Files.deleteIfExists(p);
      }
    } catch (IOException e) {
      org.slf4j.LoggerFactory.getLogger(Sample.class)
          .warn("The temporary directory {} could not be deleted: {}", directory, e.toString());
    }
  }
}
