package io.moe4j.checkpoint;

import com.google.re2j.Pattern;

/**
 * Regular expressions as Python's {@code re} reads them, for an engine of linear time. What this
 * engine reads otherwise without an error is put in its words; what it lacks (look-around, back
 * references, possessive repetitions) stays an error of its own.
 */
final class PythonRegex {
  private PythonRegex() {}

  /**
   * Compiles one.
   *
   * @param regex in Python's syntax
   * @throws com.google.re2j.PatternSyntaxException if the engine does not understand it
   */
  static Pattern compile(String regex) {
    return Pattern.compile(translate(regex));
  }

  /** {@code \Z} is the end, and {@code {,n}} a repetition: RE2 takes that for text. */
  private static String translate(String regex) {
    if (!regex.contains("\\Z") && !regex.contains("{,")) {
      return regex;
    }
    StringBuilder out = new StringBuilder(regex.length() + 8);
    int classStart = -1;
    for (int i = 0; i < regex.length(); i++) {
      char c = regex.charAt(i);
      if (c == '\\' && i + 1 < regex.length()) {
        char next = regex.charAt(++i);
        out.append(c).append(next == 'Z' && classStart < 0 ? 'z' : next);
        continue;
      }
      out.append(c);
      if (classStart < 0 && c == '[') {
        classStart = i + 1;
        if (i + 1 < regex.length() && regex.charAt(i + 1) == '^') {
          out.append('^');
          i++;
          classStart++;
        }
      } else if (classStart >= 0 && c == ']' && i > classStart) {
        classStart = -1;
      } else if (classStart < 0 && c == '{' && isOpenBelow(regex, i)) {
        out.append('0');
      }
    }
    return out.toString();
  }

  private static boolean isOpenBelow(String regex, int brace) {
    int i = brace + 1;
    if (i >= regex.length() || regex.charAt(i) != ',') {
      return false;
    }
    i++;
    while (i < regex.length() && regex.charAt(i) >= '0' && regex.charAt(i) <= '9') {
      i++;
    }
    return i < regex.length() && regex.charAt(i) == '}';
  }
}
