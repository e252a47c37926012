package io.moe4j.cli;

import static java.util.Locale.ROOT;

import java.io.IOException;
import java.io.Writer;
import java.util.regex.Pattern;

/**
 * The last door before a terminal: control characters, and characters that turn the direction of
 * writing, appear as {@code \\uXXXX} (which is also what JSON calls them), and lines that are too
 * long are broken at spaces. Names come from files that anybody may have written.
 */
final class SafeWriter extends Writer {
  private static final int HANG = 4;
  private static final Pattern WIDE_GAP = Pattern.compile(" {3,}");
  private static final String LINE_END = System.lineSeparator();

  private final Writer out;
  private final int columns;
  private final StringBuilder line = new StringBuilder();

  /**
   * @param columns where lines are broken, 0 = nowhere
   */
  SafeWriter(Writer out, int columns) {
    this.out = out;
    this.columns = columns;
  }

  @Override
  public void write(char[] chars, int from, int count) throws IOException {
    for (int i = from; i < from + count; i++) {
      if (chars[i] == '\n') {
        end(true);
      } else {
        line.append(chars[i]);
      }
    }
  }

  private void end(boolean newLine) throws IOException {
    if (newLine && line.length() > 0 && line.charAt(line.length() - 1) == '\r') {
      line.setLength(line.length() - 1); // a line end of two characters
    }
    String safe = safe(line);
    line.setLength(0);
    out.write(columns > 0 ? broken(safe, columns) : safe);
    if (newLine) {
      out.write(LINE_END);
    }
  }

  private static String safe(CharSequence text) {
    if (text.codePoints().noneMatch(SafeWriter::isUnsafe)) {
      return text.toString();
    }
    StringBuilder s = new StringBuilder();
    text.codePoints()
        .forEach(c ->
            s.append(
                !isUnsafe(c)
                    ? Character.toString(c)
                    : c <= 0xffff
                        ? String.format(ROOT, "\\u%04x", c)
                        : String.format(
                            ROOT,
                            "\\u%04x\\u%04x",
                            (int) Character.highSurrogate(c),
                            (int) Character.lowSurrogate(c))));
    return s.toString();
  }

  private static boolean isUnsafe(int c) {
    return c != '\t' && Text.isUnsafe(c);
  }

  /** What does not fit follows below, further in than its line begins. */
  static String broken(String whole, int columns) {
    if (whole.length() <= columns) {
      return whole;
    }
    int indent = 0;
    while (indent < whole.length() && whole.charAt(indent) == ' ') {
      indent++;
    }
    // A table that is too wide: what aligned its columns would only push them out of sight.
    indent = indent > columns / 2 ? 2 * HANG : indent;
    String text = " ".repeat(indent) + WIDE_GAP.matcher(whole.strip()).replaceAll("  ");
    if (text.length() <= columns) {
      return text;
    }
    String hang = " ".repeat(Math.min(indent + HANG, columns / 2));
    StringBuilder s = new StringBuilder();
    String rest = text;
    String start = "";
    while (start.length() + rest.length() > columns) {
      int room = columns - start.length();
      int at = rest.lastIndexOf(' ', room);
      if (at <= (start.isEmpty() ? indent : 0)) {
        at = rest.indexOf(' ', room); // a word that is too long for any line
        if (at < 0) {
          break;
        }
      }
      s.append(start).append(rest.substring(0, at).stripTrailing()).append(LINE_END);
      rest = rest.substring(at).stripLeading();
      start = hang;
    }
    return rest.isEmpty() ? s.toString().stripTrailing() : s.append(start).append(rest).toString();
  }

  @Override
  public void flush() throws IOException {
    if (line.length() > 0) {
      end(false);
    }
    out.flush();
  }

  @Override
  public void close() throws IOException {
    flush();
    out.close();
  }
}
