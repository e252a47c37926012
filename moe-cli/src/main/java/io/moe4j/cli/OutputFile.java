package io.moe4j.cli;

import io.moe4j.api.CheckpointException;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.SafetensorsWriter;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;

/** The result's file: complete or not there, and never in the place of something that was read. */
final class OutputFile implements AutoCloseable {
  private final SafetensorsWriter writer;
  private final OnInterrupt interrupted;

  private OutputFile(SafetensorsWriter writer) {
    this.writer = writer;
    this.interrupted = OnInterrupt.run(writer::close);
  }

  /**
   * Checks, before anything is computed, that a file can be written without harm.
   *
   * @param given where the result goes
   * @param inputs files and directories that are read
   * @return the file to write, behind symbolic links
   */
  static Path requireFresh(Path given, List<Path> inputs) {
    Path target = OutputTarget.resolve("--output", given);
    if (!Files.exists(target)) {
      return target;
    }
    for (Path input : inputs) {
      try (Stream<Path> files = Files.isDirectory(input) ? Files.list(input) : Stream.of(input)) {
        for (Path file : files.toList()) {
          if (Files.exists(file) && Files.isSameFile(file, target)) {
            throw CliException.usage(
                "--output " + given + " is one of the inputs, " + file + "; it would be lost.");
          }
        }
      } catch (IOException e) {
        throw new CliException(ExitCode.BAD_INPUT, input + " cannot be listed: " + e, e);
      }
    }
    return target;
  }

  static OutputFile create(Path target, Map<String, SafetensorsWriter.Spec> specs) {
    try {
      return new OutputFile(SafetensorsWriter.create(target, specs, Map.of("format", "pt")));
    } catch (CheckpointException e) {
      throw failed(e);
    }
  }

  void put(String name, Tensor tensor) {
    try {
      writer.put(name, tensor);
    } catch (CheckpointException e) {
      throw failed(e);
    }
  }

  void commit() {
    try {
      writer.commit();
    } catch (CheckpointException e) {
      throw failed(e);
    }
  }

  static long size(Path file) {
    try {
      return Files.size(file);
    } catch (IOException e) {
      throw new CliException(ExitCode.OUTPUT, file + " was written and is gone: " + e, e);
    }
  }

  private static CliException failed(CheckpointException e) {
    return new CliException(ExitCode.OUTPUT, String.valueOf(e.getMessage()), e);
  }

  private static CliException output(String message) {
    return new CliException(ExitCode.OUTPUT, message);
  }

  @Override
  public void close() {
    interrupted.close();
    writer.close();
  }
}
