package io.moe4j.checkpoint;

import java.io.IOException;
import java.io.InputStream;
import java.nio.file.DirectoryIteratorException;
import java.nio.file.DirectoryStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.TreeSet;
import java.util.regex.Pattern;

/** Recognises what other trainers leave where an adapter is looked for, to say what to do. */
final class ForeignAdapters {
  private static final int MAX_LOOKED_AT = 1000;

  private static final Map<Pattern, String> KINDS = new LinkedHashMap<>();

  static {
    kind(
        ".*\\.gguf",
        "is a GGUF file of llama.cpp, which is not read: give the adapter that it was made from");
    kind(
        "lit_model\\.pth\\.lora",
        "is LitGPT's own form, pickled, which is not read: merge it, or export factors in PEFT's"
            + " form");
    kind(
        "adapter_(?:model|\\d+)\\.(?:pt|bin)",
        "is pickled, which is not read: save the adapter as safetensors (PEFT:"
            + " safe_serialization=True; torchtune: safe_serialization: True, for model types that"
            + " it exports to PEFT)");
    kind(
        "adapters\\.npz",
        "was written by mlx-lm before April 2024, without a config; convert it to"
            + " adapters.safetensors and write adapter_config.json with lora_parameters (rank, scale)");
    kind(
        "adapters\\.safetensors",
        "has mlx-lm's name for weights; its adapter_config.json with lora_parameters (rank, scale)"
            + " belongs beside it");
    kind(
        ".*\\.distcp|latest_checkpointed_iteration\\.txt",
        "belongs to a distributed checkpoint (Megatron, PyTorch), which is not read: export the"
            + " adapter in PEFT's form");
    kind(
        "zero_to_fp32\\.py|global_step\\d+",
        "belongs to a DeepSpeed checkpoint, which is not read: save the adapter itself, with parameters"
            + " gathered");
  }

  private ForeignAdapters() {}

  private static void kind(String name, String words) {
    KINDS.put(Pattern.compile(name), words);
  }

  /**
   * What a directory holds instead of an adapter.
   *
   * @param directory where something is missing
   * @return the end of a message, empty if nothing is recognised
   */
  static String hint(Path directory) {
    TreeSet<String> names = new TreeSet<>();
    try (DirectoryStream<Path> entries = Files.newDirectoryStream(directory)) {
      for (Path entry : entries) {
        names.add(String.valueOf(entry.getFileName()));
        if (names.size() > MAX_LOOKED_AT) {
          break;
        }
      }
    } catch (IOException | DirectoryIteratorException e) {
      return "";
    }
    for (Map.Entry<Pattern, String> kind : KINDS.entrySet()) {
      for (String name : names) {
        if (kind.getKey().matcher(name).matches()) {
          return "; " + StrictJson.shorten(name) + " " + kind.getValue();
        }
      }
    }
    return "";
  }

  /**
   * What a file is that was given where a directory belongs.
   *
   * @param path the file, or nothing
   * @return the end of a message, empty if it is not recognised
   */
  static String file(Path path) {
    if (!Files.isRegularFile(path)) {
      return "";
    }
    try (InputStream in = Files.newInputStream(path)) {
      return FileKinds.recognise(in.readNBytes(FileKinds.SNIFF_BYTES))
          .map(words -> "; the file " + words)
          .orElse("");
    } catch (IOException e) {
      return "";
    }
  }
}
