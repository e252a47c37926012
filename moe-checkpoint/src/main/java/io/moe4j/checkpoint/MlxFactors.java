package io.moe4j.checkpoint;

import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.AdapterKey.Part;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.jspecify.annotations.Nullable;

/**
 * Names and shapes of mlx-lm's adapters. A linear layer has {@code lora_a [in, r]} and {@code
 * lora_b [r, out]}; all experts of one projection ({@code switch_mlp.gate_proj}) have {@code lora_a
 * [E, r, in]} and {@code lora_b [E, out, r]}, before October 2025 {@code lora_a [E*r, in]}, experts
 * first.
 */
final class MlxFactors {
  private static final Pattern FACTOR = Pattern.compile("(.+)\\.lora_([ab])(?:\\.weight)?");
  private static final String MAGNITUDE = ".m";

  private MlxFactors() {}

  /** A tensor's name, its module in the words of the modelling code of transformers. */
  static AdapterKey parse(String tensor) {
    Matcher factor = FACTOR.matcher(tensor);
    if (factor.matches()) {
      return new AdapterKey(
          tensor, module(factor.group(1)), factor.group(2).equals("a") ? Part.A : Part.B);
    }
    if (tensor.endsWith(MAGNITUDE)) {
      return new AdapterKey(
          tensor,
          module(tensor.substring(0, tensor.length() - MAGNITUDE.length())),
          Part.MAGNITUDE);
    }
    AdapterKey key = AdapterKey.parse(tensor);
    return new AdapterKey(
        tensor, module(key.module()), key.part() == Part.WHOLE ? Part.WHOLE : Part.FOREIGN);
  }

  /**
   * Refuses what has a meaning in PEFT's form only: mlx-lm keeps the projections of experts apart,
   * and their factors in three dimensions (a folded A is unfolded by now).
   */
  static void requireWritten(FactorPair pair) throws AdapterProblem {
    switch (pair.place) {
      case ModulePlace.Wrapper _, ModulePlace.Named _, ModulePlace.ExpertGateUp _ ->
          throw AdapterProblem.damage(
              "mlx-lm has gate_proj, up_proj and down_proj of experts apart, and writes no factors"
                  + " of this module");
      case ModulePlace.Stacked _ -> {
        if (pair.turned) {
          throw AdapterProblem.damage(
              "lora_a is %s and lora_b %s; experts take [E, r, in] and [E, out, r], or [E*r, in] for lora_a"
                  .formatted(asStored(pair.a()), asStored(pair.b())));
        }
      }
      default -> {}
    }
  }

  /** A factor as the file has it, for messages. */
  static Tensor asStored(Tensor factor) {
    return factor.dims() == 2 ? factor.transpose(0, 1) : factor;
  }

  /** Experts stand under {@code switch_mlp}, {@code experts} or {@code experts.switch_glu}. */
  private static String module(String name) {
    List<String> segments = new ArrayList<>();
    boolean inSwitch = false;
    for (String segment : name.split("\\.", -1)) {
      boolean isSwitch = segment.equals("switch_mlp") || segment.equals("switch_glu");
      if (!isSwitch) {
        segments.add(inSwitch ? projection(segment) : segment);
      } else if (segments.isEmpty() || !segments.getLast().equals("experts")) {
        segments.add("experts");
      }
      inSwitch |= isSwitch;
    }
    return String.join(".", segments);
  }

  /** Experts without a gate number their two layers. */
  private static String projection(String segment) {
    return switch (segment) {
      case "fc1" -> "up_proj";
      case "fc2" -> "down_proj";
      default -> segment;
    };
  }

  /** Views in PEFT's orientation; what has no shape of mlx-lm's stays as it is. */
  static Map<String, Tensor> turned(Map<String, AdapterKey> keys, Map<String, Tensor> stored) {
    Map<String, Tensor> bs = new HashMap<>();
    stored.forEach((name, tensor) -> {
      AdapterKey key = keys.get(name);
      if (key != null && key.part() == Part.B) {
        bs.put(key.module(), tensor);
      }
    });
    Map<String, Tensor> turned = new LinkedHashMap<>();
    stored.forEach((name, tensor) -> {
      AdapterKey key = keys.get(name);
      turned.put(
          name,
          key == null || tensor.dims() != 2
              ? tensor
              : turned(tensor, bs.get(key.module()), key.part()));
    });
    return turned;
  }

  private static Tensor turned(Tensor factor, @Nullable Tensor b, Part part) {
    if (part != Part.A && part != Part.B) {
      return factor;
    }
    return part == Part.A && b != null && isFolded(factor, b)
        ? factor.reshape(b.size(0), b.size(2), factor.size(1))
        : factor.transpose(0, 1);
  }

  /** Whether a 2-D A holds what its 3-D B has for each expert. */
  private static boolean isFolded(Tensor a, Tensor b) {
    return b.dims() == 3
        && b.size(0) > 0
        && a.size(0) % b.size(0) == 0
        && a.size(0) / b.size(0) == b.size(2);
  }
}
