package io.moe4j.checkpoint;

import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/**
 * Tells by the names of tensors which ways of quantisation experts have: those that are read here,
 * and those that are not, to name them instead of calling experts missing.
 */
final class QuantisedNames {
  /** Endings of tensors that no reader here understands, and who writes them. */
  private static final Map<String, String> BY_ENDING = new LinkedHashMap<>();

  /** What the tensors of a quantised module are called that are read here. */
  private static final List<String> PARTS =
      List.of(
          "qweight",
          "qzeros",
          "scales",
          "g_idx",
          "weight_packed",
          "weight_scale",
          "weight_scale_inv",
          "weight_scale_2",
          "weight_global_scale",
          "weight_zero_point",
          "weight_shape",
          "weight_g_idx",
          "scale",
          "input_scale",
          "act_scale",
          "activation_scale",
          "input_global_scale",
          "input_zero_point");

  static {
    BY_ENDING.put("_blocks", "MXFP4 (blocks and scales, as gpt-oss is published)");
    BY_ENDING.put("_scales", "MXFP4 (blocks and scales, as gpt-oss is published)");
    BY_ENDING.put("_packed", "packed experts in one tensor (packed)");
    BY_ENDING.put("_scale_inv", "block-wise FP8 of experts in one tensor (scale_inv)");
    BY_ENDING.put("_weight_scale_2", "NVFP4 of experts in one tensor (weight_scale_2)");
    BY_ENDING.put("_weight_scale", "FP8 or int8 of experts in one tensor (weight_scale)");
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
    BY_ENDING.put(".biases", "MLX (scales and biases)");
    BY_ENDING.put(".bitmask", "sparse weights (bitmask)");
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
        if (name.endsWith(e.getKey()) && !isPart(name.substring(name.lastIndexOf('.') + 1))) {
          return Optional.of(e.getValue());
        }
      }
    }
    return Optional.empty();
  }

  /**
   * What kind of modules that are read here a block holds, for messages about what is missing.
   *
   * @param names names below the block
   * @return in words, or empty if nothing looks quantised
   */
  static Optional<String> kind(Collection<String> names) {
    for (String name : names) {
      String ending = name.substring(name.lastIndexOf('.') + 1);
      if (isPart(ending)) {
        return Optional.of(
            switch (ending) {
              case "qweight", "qzeros", "scales", "g_idx" -> "GPTQ or AWQ (" + ending + ")";
              case "weight_scale_inv" -> "block-wise FP8 (weight_scale_inv)";
              case "weight_scale_2", "weight_global_scale", "input_global_scale" ->
                  "NVFP4 (" + ending + ")";
              case "weight_scale", "scale", "input_scale", "act_scale", "activation_scale" ->
                  "FP8, int8 or FP4 (" + ending + ")";
              default -> "compressed-tensors (" + ending + ")";
            });
      }
    }
    return Optional.empty();
  }

  /** The names that quantised modules have for their tensors. */
  static List<String> parts() {
    return PARTS;
  }

  /** Whether a name that ends a tensor's is one that quantised modules have. */
  static boolean isPart(String ending) {
    return PARTS.contains(ending);
  }
}
