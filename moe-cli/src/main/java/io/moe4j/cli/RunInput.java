package io.moe4j.cli;

import io.moe4j.api.CheckpointException;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.SafetensorsFile;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.Collectors;

/**
 * What {@code moe run} reads besides model and adapters: hidden states, and who gets which adapter.
 */
final class RunInput {
  /** What stands for "no adapter" in a list of names. */
  static final String BASE = "base";

  private RunInput() {}

  /**
   * A tensor in a file, as {@code FILE.safetensors:TENSOR} on the command line.
   *
   * @param file the file
   * @param tensor the tensor's name
   */
  record Source(Path file, String tensor) {
    /** Splits at the last colon that leaves a file in front of it. */
    static Source parse(String option, String text) {
      int colon = text.indexOf(".safetensors:");
      int split = colon >= 0 ? colon + ".safetensors".length() : text.lastIndexOf(':');
      if (split <= 0 || split == text.length() - 1) {
        throw CliException.usage(
            option
                + " is \""
                + text
                + "\", must be FILE.safetensors:TENSOR, like io.safetensors:layers.0.input");
      }
      return new Source(Path.of(text.substring(0, split)), text.substring(split + 1));
    }

    @Override
    public String toString() {
      return file + ":" + tensor;
    }
  }

  /** The hidden states {@code [T, H]}, a view of the mapped file. */
  static Tensor hidden(SafetensorsFile file, Source source, int hiddenSize) {
    Tensor t = tensor(file, source);
    if (t.dtype() != DType.F32 && t.dtype() != DType.BF16 && t.dtype() != DType.F16) {
      throw CliException.badInput(
          "--input " + source + " is " + t + "; hidden states must be F32, BF16 or F16.");
    }
    if (t.dims() != 2 || t.size(1) != hiddenSize) {
      throw CliException.badInput(
          "--input "
              + source
              + " is "
              + t
              + "; the model's layers take [T, H] with H = "
              + hiddenSize
              + ".");
    }
    if (t.size(0) > Integer.MAX_VALUE / 64) {
      throw CliException.badInput("--input " + source + " is " + t + ", which is too many tokens.");
    }
    return t;
  }

  static Tensor tensor(SafetensorsFile file, Source source) {
    Tensor t = file.tensors().get(source.tensor());
    if (t == null) {
      throw new CheckpointException(
          file.path()
              + " holds no tensor \""
              + source.tensor()
              + "\"; it holds "
              + some(file.tensors().keySet().stream().sorted().toList())
              + ".");
    }
    return t;
  }

  /** The tokens' ids, a copy as I32 {@code [T]}. */
  static Tensor tokenIds(SafetensorsFile file, Source source, int tokens) {
    Tensor t = tensor(file, source);
    boolean integers = t.dtype() == DType.I32 || t.dtype() == DType.I64;
    if (!integers || t.dims() != 1 || t.size(0) != tokens) {
      throw CliException.badInput(
          "--token-ids "
              + source
              + " is "
              + t
              + "; must be I32 or I64 ["
              + tokens
              + "], one id for each token of --input.");
    }
    int[] ids = new int[tokens];
    for (int i = 0; i < tokens; i++) {
      double id = t.get(i);
      if (id < 0 || id > Integer.MAX_VALUE) {
        throw CliException.badInput(
            "--token-ids " + source + "[" + i + "] is " + (long) id + ", must not be negative.");
      }
      ids[i] = (int) id;
    }
    return Tensor.ofInts(ids, tokens);
  }

  private static String some(List<String> names) {
    int shown = Math.min(names.size(), 12);
    return names.subList(0, shown).stream().map(Text::line).collect(Collectors.joining(", "))
        + (names.size() > shown ? " and " + (names.size() - shown) + " more" : "");
  }

  /**
   * The adapter of each token: 0 = base, i = the i-th of {@code adapters}.
   *
   * @param text the option's value, or null
   * @param adapters names in the order of the command line
   * @param tokens {@code T}
   */
  static int[] assignment(
      @org.jspecify.annotations.Nullable String text, List<String> adapters, int tokens) {
    if (text == null) {
      if (adapters.size() > 1) {
        throw CliException.usage(
            "there are "
                + adapters.size()
                + " adapters: say with --assign which token uses which, by a tensor or by names, like"
                + " --assign "
                + BASE
                + ","
                + String.join(",", adapters)
                + " (repeated over the tokens).");
      }
      int[] all = new int[tokens];
      java.util.Arrays.fill(all, adapters.size());
      return all;
    }
    if (text.contains(".safetensors:")) {
      return fromTensor(Source.parse("--assign", text), adapters, tokens);
    }
    return fromNames(text, adapters, tokens);
  }

  private static int[] fromTensor(Source source, List<String> adapters, int tokens) {
    requireFile(source.file());
    try (SafetensorsFile file = SafetensorsFile.open(source.file())) {
      Tensor t = tensor(file, source);
      if (t.dims() != 1 || t.size(0) != tokens || t.dtype().isFloating()) {
        throw CliException.badInput(
            "--assign "
                + source
                + " is "
                + t
                + "; it must hold one integer for each of the "
                + tokens
                + " tokens.");
      }
      int[] assignment = new int[tokens];
      for (int i = 0; i < tokens; i++) {
        double value = t.get(i);
        if (!(value >= 0 && value <= adapters.size())) {
          throw CliException.badInput(
              "--assign "
                  + source
                  + " has "
                  + (long) value
                  + " for token "
                  + i
                  + "; accepted are 0 (base) to "
                  + adapters.size()
                  + " (the last --adapter).");
        }
        assignment[i] = (int) value;
      }
      return assignment;
    }
  }

  private static int[] fromNames(String text, List<String> adapters, int tokens) {
    List<Integer> cycle = new ArrayList<>();
    for (String raw : text.split(",", -1)) {
      String name = raw.strip();
      int index = name.equals(BASE) ? 0 : adapters.indexOf(name) + 1;
      if (index == 0 && !name.equals(BASE)) {
        throw CliException.usage(
            "--assign names \""
                + name
                + "\", which no --adapter defines; known are "
                + BASE
                + (adapters.isEmpty() ? "" : ", " + String.join(", ", adapters))
                + ". (A tensor is given as FILE.safetensors:TENSOR.)");
      }
      cycle.add(index);
    }
    if (cycle.size() > tokens && tokens > 0) {
      throw CliException.usage(
          "--assign has "
              + cycle.size()
              + " names for "
              + tokens
              + " tokens; give one for each token, or fewer, which are repeated.");
    }
    int[] assignment = new int[tokens];
    for (int i = 0; i < tokens; i++) {
      assignment[i] = cycle.get(i % cycle.size());
    }
    return assignment;
  }

  static void requireFile(Path file) {
    requireFile("", file);
  }

  static void requireFile(String option, Path file) {
    if (!Files.isRegularFile(file)) {
      throw CliException.badInput(
          (option + " " + Text.line(file.toString())).strip()
              + (Files.exists(file) ? " is not a file." : " does not exist."));
    }
    requireReadable(file);
  }

  private static void requireReadable(Path path) {
    if (!Files.isReadable(path)) {
      throw CliException.badInput(
          Text.line(path.toString()) + " may not be read (permission denied).");
    }
  }

  static void requireDirectory(String option, Path directory) {
    if (!Files.isDirectory(directory)) {
      throw CliException.badInput(
          option
              + " "
              + Text.line(directory.toString())
              + (Files.exists(directory)
                  ? " is a file; a directory is expected."
                  : " does not exist."));
    }
    requireReadable(directory);
  }
}
