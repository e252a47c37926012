package io.moe4j.oracle;

/**
 * Texts of plugins, made fit for tables, logs and terminals: nothing in them may move a cursor, end
 * a line or turn the direction of writing.
 */
final class Printable {
  private static final int MAX_LENGTH = 500;

  private Printable() {}

  /** {@return the text on one line, control characters written as {@code \\uXXXX}, cut if long} */
  static String line(String text) {
    return escape(text, false);
  }

  /** {@return the same, but line breaks stay} */
  static String text(String text) {
    return escape(text, true);
  }

  private static String escape(String text, boolean lines) {
    StringBuilder s = new StringBuilder();
    for (int i = 0; i < text.length() && s.length() < MAX_LENGTH; ) {
      int c = text.codePointAt(i);
      i += Character.charCount(c);
      if (c == '\n' && lines) {
        s.append('\n');
      } else if (isUnsafe(c)) {
        s.append(c == '\n' ? "\\n" : c == '\t' ? " " : String.format("\\u%04x", c));
      } else {
        s.appendCodePoint(c);
      }
    }
    return s.length() < MAX_LENGTH ? s.toString() : s + "...";
  }

  private static boolean isUnsafe(int c) {
    return switch (Character.getType(c)) {
      case Character.CONTROL,
          Character.FORMAT,
          Character.LINE_SEPARATOR,
          Character.PARAGRAPH_SEPARATOR,
          Character.SURROGATE ->
          true;
      default -> false;
    };
  }
}
