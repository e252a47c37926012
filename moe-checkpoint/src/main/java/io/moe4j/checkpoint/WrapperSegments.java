package io.moe4j.checkpoint;

import java.util.regex.Pattern;

/**
 * Segments that wrappers put into module names and that no model has itself: {@code
 * _fsdp_wrapped_module}, {@code _fpw_module} (FSDP), {@code _checkpoint_wrapped_module} (activation
 * checkpointing, offloading), {@code _orig_mod} (torch.compile), {@code _forward_module}
 * (Lightning), {@code _module} (Opacus), {@code module} (DDP, DeepSpeed), {@code original_moe}
 * (fine-tuning with KTransformers). A file saved without unwrapping has them anywhere in its names.
 */
final class WrapperSegments {
  private static final String WRAPPER = "(?:_(?:[A-Za-z0-9]+_)*mod(?:ule)?|module|original_moe)";
  private static final String DOT = "(?:\\\\\\.|\\[\\.\\]|\\.)";

  /** In a regex a dot may be escaped; a segment ends where a name's characters end. */
  private static final Pattern BEFORE_DOT =
      Pattern.compile("(?<![A-Za-z0-9_])" + WRAPPER + DOT + "(?![*+?{])");

  private static final Pattern AT_END =
      Pattern.compile(DOT + "(?<![A-Za-z0-9_])" + WRAPPER + "(?=\\$?$)");

  private static final Pattern ANYWHERE =
      Pattern.compile("(?<![A-Za-z0-9_])_(?:[A-Za-z0-9]+_)*mod(?:ule)?(?![A-Za-z0-9_])");

  private WrapperSegments() {}

  private static boolean isWrapper(String name, int from, int to) {
    if ((to - from == 6 && name.startsWith("module", from))
        || (to - from == 12 && name.startsWith("original_moe", from))) {
      return true;
    }
    return to > from
        && name.charAt(from) == '_'
        && (name.startsWith("_mod", to - 4) || name.startsWith("_module", to - 7));
  }

  /**
   * A name without such segments.
   *
   * @param name of a module or tensor
   */
  static String strip(String name) {
    if (!name.contains("mod") && !name.contains("original_moe")) {
      return name;
    }
    StringBuilder kept = new StringBuilder(name.length());
    for (int from = 0; from <= name.length(); ) {
      int dot = name.indexOf('.', from);
      int to = dot < 0 ? name.length() : dot;
      if (!isWrapper(name, from, to)) {
        kept.append(kept.isEmpty() ? "" : ".").append(name, from, to);
      }
      from = to + 1;
    }
    return kept.toString();
  }

  /**
   * A pattern of names without such segments.
   *
   * @param pattern a name or a regular expression from a file
   */
  static String stripPattern(String pattern) {
    if (!pattern.contains("mod")) {
      return pattern;
    }
    String inner = BEFORE_DOT.matcher(pattern).replaceAll("");
    return AT_END.matcher(inner).replaceAll("");
  }

  /** Whether a stripped pattern still speaks of a wrapper, in a way that cannot be taken out. */
  static boolean isLeft(String pattern) {
    return ANYWHERE.matcher(pattern).find();
  }
}
