package io.moe4j.cli;

import static java.util.Locale.ROOT;

/** Formats numbers and paragraphs of the commands' output. */
final class Text {
  private Text() {}

  /** {@return bytes in binary units, like {@code 1.5 GiB}} */
  static String bytes(long bytes) {
    if (bytes < 1024) {
      return bytes + " B";
    }
    String[] units = {"KiB", "MiB", "GiB", "TiB", "PiB"};
    double value = bytes;
    int unit = -1;
    while (value >= 1023.95 && unit + 1 < units.length) {
      value /= 1024;
      unit++;
    }
    return String.format(ROOT, "%.1f %s", value, units[unit]);
  }

  /** {@return a duration, like {@code 3.2 ms}} */
  static String nanos(long duration) {
    double nanos = (double) duration;
    if (nanos < 1e3) {
      return String.format(ROOT, "%.0f ns", nanos);
    }
    if (nanos < 1e6) {
      return String.format(ROOT, "%.1f us", nanos / 1e3);
    }
    if (nanos < 1e9) {
      return String.format(ROOT, "%.2f ms", nanos / 1e6);
    }
    return String.format(ROOT, "%.2f s", nanos / 1e9);
  }

  /**
   * {@return a name out of a file, fit for one line of a terminal: control characters, line breaks
   * and what turns the direction of writing as {@code \\uXXXX}}
   *
   * @param name any text
   */
  static String line(String name) {
    StringBuilder s = new StringBuilder();
    name.codePoints()
        .forEach(c ->
            s.append(
                c == '\n'
                    ? "\\n"
                    : isUnsafe(c) ? String.format(ROOT, "\\u%04x", c) : Character.toString(c)));
    return s.toString();
  }

  /** {@return a text, cut and marked where it is longer than that} */
  static String cut(String text, int most) {
    return text.length() <= most ? text : text.substring(0, most) + "...";
  }

  /** Whether a character can do more to a terminal than appear on it. */
  static boolean isUnsafe(int c) {
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

  /**
   * Breaks lines at spaces. Lines that are already short enough, and lines that begin with spaces
   * (tables), stay as they are.
   */
  static String wrap(String text, int width) {
    StringBuilder out = new StringBuilder();
    for (String line : text.split("\n", -1)) {
      if (line.length() <= width || line.startsWith(" ")) {
        out.append(line).append('\n');
        continue;
      }
      int column = 0;
      for (String word : line.split(" ", -1)) {
        if (column > 0 && column + 1 + word.length() > width) {
          out.append('\n');
          column = 0;
        } else if (column > 0) {
          out.append(' ');
          column++;
        }
        out.append(word);
        column += word.length();
      }
      out.append('\n');
    }
    out.setLength(out.length() - 1);
    return out.toString();
  }
}
