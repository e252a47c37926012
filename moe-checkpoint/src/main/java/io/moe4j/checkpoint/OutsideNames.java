package io.moe4j.checkpoint;

import java.util.HashSet;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Locale;
import java.util.Optional;
import java.util.Set;

/**
 * Tells what stands beside the MoE blocks (attention, norms, other towers) from what looks like a
 * part of one under a name that the layout does not have. Only what is recognised counts as
 * outside: a factor of an expert must never pass for attention.
 */
final class OutsideNames {
  /** Towers, draft heads and connectors whose layers are none of the language model's. */
  private static final Set<String> OTHER_TOWERS =
      Set.of(
          "mtp",
          "talker",
          "code_predictor",
          "code2wav",
          "connector",
          "aligner",
          "merger",
          "vit",
          "clip");

  /** Words in the names of such towers. */
  private static final List<String> TOWER_WORDS =
      List.of("vision", "visual", "image", "audio", "speech", "whisper", "siglip", "projector");

  private static final List<String> EXPERT_WORDS =
      List.of("expert", "moe", "router", "switch_mlp", "switch_glu");

  private static final List<String> MLP_WORDS =
      List.of("mlp", "ffn", "feed_forward", "feedforward");

  /** What the part of a layer that is named right after its index may be, besides the block. */
  private static final List<String> BESIDE_THE_BLOCK =
      List.of(
          "attn",
          "attention",
          "norm",
          "ln_",
          "mamba",
          "conv",
          "ssm",
          "embed",
          "rotary",
          "rope",
          "indexer",
          "rwkv",
          "recurrent",
          "delta",
          "temporal",
          "layer_scale",
          "altup",
          "laurel",
          "per_layer");

  /** Modules of a block that no other part of a model calls so. */
  private static final Set<String> BLOCK_MODULES =
      Set.of("gate", "gate_proj", "up_proj", "down_proj", "gate_up_proj", "w1", "w2", "w3", "w13");

  private static final List<String> ATTENTION_PROJECTIONS =
      List.of("qkv", "q_", "k_", "v_", "o_", "kv_");

  private OutsideNames() {}

  /**
   * The other tower that a root leads to.
   *
   * @param root what precedes the layers, or a whole name
   * @param model the model that is meant
   * @return its name, or empty for the model itself
   */
  static Optional<String> otherTower(String root, AdapterTargetModel model) {
    Set<String> segments = segments(root);
    Set<String> own = segments(model.root().orElse(""));
    for (String segment : segments) {
      if (isTower(segment) && !own.contains(segment)) {
        return Optional.of(segment);
      }
    }
    Set<String> ofOthers = new HashSet<>();
    for (String other : model.otherRoots()) {
      Set<String> distinct = segments(other);
      ofOthers.addAll(distinct);
      distinct.removeAll(own);
      if (root.equals(other) || segments.stream().anyMatch(distinct::contains)) {
        return Optional.of(other);
      }
    }
    own.removeAll(ofOthers);
    boolean isMarked = !model.otherRoots().isEmpty() && !own.isEmpty();
    return isMarked && segments.stream().noneMatch(own::contains)
        ? Optional.of(root)
        : Optional.empty();
  }

  /** Whether a root leads to a tower that is no language model, or not the one that is meant. */
  static boolean isOtherTower(String root) {
    return segments(root).stream().anyMatch(OutsideNames::isTower);
  }

  private static boolean isTower(String segment) {
    return OTHER_TOWERS.contains(segment)
        || (containsAny(segment, TOWER_WORDS) && !segment.contains("language"));
  }

  private static Set<String> segments(String root) {
    Set<String> segments = new LinkedHashSet<>(List.of(root.split("\\.")));
    segments.remove("");
    return segments;
  }

  /** Whether a part of a layer is attention, a norm or the like. */
  static boolean isBesideTheBlock(String rest) {
    String lower = rest.toLowerCase(Locale.ROOT);
    int dot = lower.indexOf('.');
    String first = dot < 0 ? lower : lower.substring(0, dot);
    if (first.contains("norm") && dot >= lower.length() - 1) {
      return !lower.contains("expert"); // post_feedforward_layernorm is a norm, norm_mlp.w1 is not
    }
    return (containsAny(first, BESIDE_THE_BLOCK)
            || ATTENTION_PROJECTIONS.stream().anyMatch(first::startsWith))
        && !containsAny(lower, EXPERT_WORDS)
        && !containsAny(lower, MLP_WORDS);
  }

  /** Whether a name speaks of experts or their router. */
  static boolean looksLikeExperts(String name) {
    return containsAny(name.toLowerCase(Locale.ROOT), EXPERT_WORDS);
  }

  /** Whether a name outside every layer that is known speaks of a MoE block or an MLP. */
  static boolean looksLikeBlock(String name) {
    String lower = name.toLowerCase(Locale.ROOT);
    return looksLikeExperts(name)
        || containsAny(lower, MLP_WORDS)
        || BLOCK_MODULES.contains(lower.substring(lower.lastIndexOf('.') + 1));
  }

  private static boolean containsAny(String text, List<String> words) {
    return words.stream().anyMatch(text::contains);
  }
}
