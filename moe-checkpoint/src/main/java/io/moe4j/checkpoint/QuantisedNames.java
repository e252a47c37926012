package io.moe4j.checkpoint;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Optional;

/**
 * Recognises quantised experts, by the names of their tensors and by what the config says, to name
 * the method instead of calling them missing.
 */
final class QuantisedNames {
  private static final Map<String, String> BY_ENDING = new LinkedHashMap<>();

  static {
    BY_ENDING.put("_blocks", "MXFP4 (blocks and scales, as gpt-oss is published)");
    BY_ENDING.put("_scales", "MXFP4 (blocks and scales, as gpt-oss is published)");
    BY_ENDING.put(".qweight", "GPTQ or AWQ (qweight)");
    BY_ENDING.put(".qzeros", "GPTQ or AWQ (qweight)");
    BY_ENDING.put(".weight_packed", "compressed-tensors (weight_packed)");
    BY_ENDING.put("_packed", "compressed-tensors (packed)");
    BY_ENDING.put("_scale_inv", "block-wise FP8 (weight_scale_inv)");
    BY_ENDING.put(".weight_scale_2", "NVFP4 (weight_scale_2)");
    BY_ENDING.put("_weight_scale_2", "NVFP4 (weight_scale_2)");
    BY_ENDING.put("_weight_scale", "FP8 or int8 (weight_scale)");
    BY_ENDING.put(".weight_scale", "FP8 or int8 (weight_scale)");
    BY_ENDING.put(".weight_global_scale", "NVFP4 (weight_global_scale)");
    BY_ENDING.put(".weight.absmax", "bitsandbytes 4-bit (quant_state)");
    BY_ENDING.put(".SCB", "bitsandbytes 8-bit (SCB)");
    BY_ENDING.put(".W_q", "HQQ (W_q)");
    BY_ENDING.put(".weight._data", "quanto (weight._data)");
    BY_ENDING.put(".weight._scale", "quanto (weight._scale)");
    BY_ENDING.put(".codes", "AQLM (codes)");
    BY_ENDING.put(".codebooks", "AQLM (codebooks)");
    BY_ENDING.put(".trellis", "EXL3 (trellis)");
    BY_ENDING.put(".q_weight", "EXL2 (q_weight)");
    BY_ENDING.put(".q_scale", "EXL2 (q_scale)");
    BY_ENDING.put(".centroids.weight", "VPTQ (centroids)");
    BY_ENDING.put(".res_centroids.weight", "VPTQ (centroids)");
    BY_ENDING.put(".scales", "scaled integers (scales)");
    BY_ENDING.put(".biases", "MLX (scales and biases)");
  }

  private QuantisedNames() {}

  /**
   * What kind of quantised experts a block holds.
   *
   * @param names names below the block
   * @return in words, or empty if nothing looks quantised
   */
  static Optional<String> recognise(Collection<String> names) {
    for (String name : names) {
      boolean expert = name.startsWith("experts.") || name.startsWith("switch_mlp.");
      if (!expert) {
        continue;
      }
      if (name.contains(".weight.quant_state")) {
        return Optional.of("bitsandbytes 4-bit (quant_state)");
      }
      for (Map.Entry<String, String> e : BY_ENDING.entrySet()) {
        if (name.endsWith(e.getKey())) {
          return Optional.of(e.getValue());
        }
      }
    }
    return Optional.empty();
  }

  /**
   * The method that the config of a checkpoint names.
   *
   * @param directory the checkpoint
   * @param configs its configs, the innermost first
   * @return in words, like {@code quant_method 'hqq'}, or empty if none says anything
   */
  static Optional<String> method(Path directory, Collection<ModelConfig> configs) {
    for (ModelConfig config : configs) {
      for (String key : new String[] {"quantization_config", "compression_config"}) {
        Optional<String> said = config.textIn(key, "quant_method");
        if (said.isPresent()) {
          Optional<String> format =
              config.textIn(key, "quant_algo").or(() -> config.textIn(key, "format"));
          return Optional.of(
              "quant_method '"
                  + StrictJson.shorten(said.get())
                  + "'"
                  + format.map(f -> ", '" + StrictJson.shorten(f) + "'").orElse(""));
        }
        if (config.has(key)) {
          return Optional.of(key + " without quant_method");
        }
      }
      if (config.has("quantization")) {
        return Optional.of("'quantization', as MLX writes it");
      }
    }
    for (String file : new String[] {"hf_quant_config.json", "quantize_config.json"}) {
      if (Files.exists(directory.resolve(file))) {
        return Optional.of("a file " + file);
      }
    }
    return Optional.empty();
  }
}
