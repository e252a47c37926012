package io.moe4j.oracle;

/**
 * Texts of plugins, made fit for tables, logs and terminals: nothing in them may move a cursor, end
 * a line or turn the direction of writing.
 */
final class Printable {
  private static final int MAX_LENGTH = 500;

  /** What a program may want to read; no plugin fills a disk with it. */
  private static final int MAX_WHOLE = 10_000;

  private Printable() {}

  /** {@return the text on one line, control characters written as {@code \\uXXXX}, cut if long} */
  static String line(String text) {
    return escape(text, false, MAX_LENGTH);
  }

  /** {@return the same, but line breaks stay} */
  static String text(String text) {
    return escape(text, true, MAX_LENGTH);
  }

  /** {@return the same of much longer texts: tables cut them later, programs get them whole} */
  static String whole(String text) {
    return escape(text, true, MAX_WHOLE);
  }

  private static String escape(String text, boolean lines, int most) {
    StringBuilder s = new StringBuilder();
    int i = 0;
    while (i < text.length() && s.length() < most) {
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
    return i < text.length() ? s + "..." : s.toString();
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
