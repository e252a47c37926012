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
