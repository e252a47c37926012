package io.moe4j.checkpoint;

import java.util.Collection;
import java.util.Optional;

/** Recognises quantised experts by the names of their tensors, to say so instead of "missing". */
final class QuantisedNames {
  private QuantisedNames() {}

  /**
   * What kind of quantised experts a block holds.
   *
   * @param names names below the block
   * @return in words, or empty if nothing looks quantised
   */
  static Optional<String> recognise(Collection<String> names) {
    for (String name : names) {
      if (!name.startsWith("experts.")) {
        continue;
      }
      if (name.endsWith("_blocks") || name.endsWith("_scales")) {
        return Optional.of("MXFP4 (blocks and scales, as gpt-oss is published)");
      }
      if (name.endsWith(".qweight") || name.endsWith(".qzeros")) {
        return Optional.of("GPTQ or AWQ (qweight)");
      }
      if (name.endsWith(".weight_packed")) {
        return Optional.of("compressed-tensors (weight_packed)");
      }
      if (name.endsWith(".weight_scale_inv") || name.endsWith("_scale_inv")) {
        return Optional.of("block-wise FP8 (weight_scale_inv)");
      }
      if (name.endsWith(".weight_scale") || name.endsWith("_weight_scale")) {
        return Optional.of("FP8 or int8 (weight_scale)");
      }
      if (name.contains(".weight.quant_state") || name.endsWith(".weight.absmax")) {
        return Optional.of("bitsandbytes 4-bit (quant_state)");
      }
    }
    return Optional.empty();
  }
}
