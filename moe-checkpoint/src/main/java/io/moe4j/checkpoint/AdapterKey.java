package io.moe4j.checkpoint;

import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * A tensor's name in an adapter file, taken apart.
 *
 * @param tensor the whole name
 * @param module the module it belongs to, without PEFT's prefix and without the segments of
 *     PyTorch's wrappers
 * @param part which part of the module's adapter it is
 */
record AdapterKey(String tensor, String module, Part part) {
  enum Part {
    A,
    B,
    /** A bias of lora_B. */
    LORA_BIAS,
    /** DoRA's magnitude vector. */
    MAGNITUDE,
    /** A pair for an embedding. */
    EMBEDDING,
    /** A factor under a name that only its trainer reads. */
    FOREIGN,
    /** No factor: a stored module or bias of the model itself. */
    WHOLE
  }

  private static final String PREFIX = "base_model.model.";

  /** Names come without the adapter's own name (as PEFT saves them) or with it. */
  private static final Pattern FACTOR =
      Pattern.compile("(.+)\\.lora_([AB])(?:\\.[^.]+)??(?:\\.(weight|bias))?");

  private static final Pattern MAGNITUDE =
      Pattern.compile("(.+)\\.lora_magnitude_vector(?:\\.[^.]+){0,2}");
  private static final Pattern EMBEDDING =
      Pattern.compile("(.+)\\.lora_embedding_[AB](?:\\.[^.]+){0,2}");

  /** Like torchtune's {@code experts.lora_gate_a}, NeMo Automodel's {@code lora_down_A}. */
  private static final Pattern FOREIGN = Pattern.compile("(.+)\\.lora_[A-Za-z_]+(?:\\.weight)?");

  static AdapterKey parse(String tensor) {
    String name = WrapperSegments.strip(tensor);
    while (name.startsWith(PREFIX)) {
      name = name.substring(PREFIX.length());
    }
    Matcher factor = FACTOR.matcher(name);
    if (factor.matches()) {
      boolean bias = "bias".equals(factor.group(3));
      Part part = bias ? Part.LORA_BIAS : factor.group(2).equals("A") ? Part.A : Part.B;
      return new AdapterKey(tensor, factor.group(1), part);
    }
    Matcher magnitude = MAGNITUDE.matcher(name);
    if (magnitude.matches()) {
      return new AdapterKey(tensor, magnitude.group(1), Part.MAGNITUDE);
    }
    Matcher embedding = EMBEDDING.matcher(name);
    if (embedding.matches()) {
      return new AdapterKey(tensor, embedding.group(1), Part.EMBEDDING);
    }
    Matcher foreign = FOREIGN.matcher(name);
    if (foreign.matches()) {
      return new AdapterKey(tensor, foreign.group(1), Part.FOREIGN);
    }
    int dot = name.lastIndexOf('.');
    return new AdapterKey(tensor, dot < 0 ? name : name.substring(0, dot), Part.WHOLE);
  }
}
