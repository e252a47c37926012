package io.moe4j.checkpoint;

import java.util.Optional;

/**
 * Where the MoE block of a layer stands in a tensor's name, like {@code layers.{L}.mlp}. Whatever
 * comes before it is the root ({@code model.}, {@code model.language_model.}, {@code backbone.},
 * nothing, ...): models are wrapped and unwrapped, and the part below stays the same.
 *
 * @param template the path with {@code {L}} for the layer index
 * @param part how much of the path belongs to the names within the block: empty where the path is
 *     the block's own, or its last name, like {@code shared_mlp}, where a part of the block stands
 *     beside it
 */
public record BlockPath(String template, String part) {
  private static final String LAYER = "{L}";
  private static final int MAX_DIGITS = 6;

  /**
   * A name that lies in a block.
   *
   * @param root what precedes the path, empty or ending in a dot
   * @param layer the layer index
   * @param rest what follows the path and its dot
   */
  public record Match(String root, int layer, String rest) {}

  /**
   * A block of its own.
   *
   * @param template must contain {@code {L}} once, between dots
   */
  public BlockPath(String template) {
    this(template, "");
  }

  /**
   * A part that stands beside its block.
   *
   * @param template like {@code layers.{L}.shared_mlp}; tensors below it count as the block's,
   *     under {@code shared_mlp.}
   * @return the path
   */
  public static BlockPath beside(String template) {
    return new BlockPath(template, template.substring(template.lastIndexOf('.') + 1));
  }

  /**
   * Checks the components.
   *
   * @param template must contain {@code {L}} once, between dots
   * @param part empty or the template's last name
   */
  public BlockPath {
    int at = template.indexOf(LAYER);
    if (at < 1
        || template.charAt(at - 1) != '.'
        || at != template.lastIndexOf(LAYER)
        || template.endsWith(".")
        || template.startsWith(".")) {
      throw new IllegalArgumentException(
          "block path '"
              + template
              + "' must look like 'layers.{L}.mlp': one {L} after a dot, no dot at the ends");
    }
    if (!part.isEmpty() && (part.equals(LAYER) || !template.endsWith("." + part))) {
      throw new IllegalArgumentException(
          "part '" + part + "' must be empty or the last name of block path '" + template + "'");
    }
  }

  /** {@return the name of the block itself: what follows the layer index, like {@code mlp}} */
  public String blockName() {
    return template.substring(template.indexOf(LAYER) + LAYER.length()).replaceFirst("^\\.", "");
  }

  /**
   * Reads a tensor's name.
   *
   * @param name the name
   * @return root, layer and the rest; empty if the name is not in such a block
   */
  public Optional<Match> match(String name) {
    return match(
        name,
        template.substring(template.indexOf(LAYER) + LAYER.length()) + ".",
        part.isEmpty() ? "" : part + ".");
  }

  /**
   * Reads a name that lies in a layer, in the block or beside it; the rest is what follows the
   * layer index.
   */
  Optional<Match> matchLayer(String name) {
    return match(name, ".", "");
  }

  private Optional<Match> match(String name, String after, String restPrefix) {
    String before = template.substring(0, template.indexOf(LAYER));
    for (int i = name.indexOf(before); i >= 0; i = name.indexOf(before, i + 1)) {
      if (i > 0 && name.charAt(i - 1) != '.') {
        continue;
      }
      int digits = i + before.length();
      int end = digits;
      while (end < name.length() && name.charAt(end) >= '0' && name.charAt(end) <= '9') {
        end++;
      }
      int length = end - digits;
      boolean canonical = length == 1 || (length > 1 && name.charAt(digits) != '0');
      if (canonical && length <= MAX_DIGITS && name.startsWith(after, end)) {
        return Optional.of(
            new Match(
                name.substring(0, i),
                Integer.parseInt(name, digits, end, 10),
                restPrefix + name.substring(end + after.length())));
      }
    }
    return Optional.empty();
  }

  /** The path in one layer. */
  String of(int layer) {
    return template.replace(LAYER, Integer.toString(layer));
  }

  @Override
  public String toString() {
    return template;
  }
}
