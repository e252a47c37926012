package io.moe4j.tck;

import java.util.Map;
import java.util.StringJoiner;
import java.util.TreeMap;

/** Cases that say nothing about what is tested, counted by reason. Safe for threads. */
final class Skipped {
  private record Count(int cases, String example) {}

  private final Map<String, Count> byCode = new TreeMap<>();

  /**
   * Counts a case.
   *
   * @param code kind of reason
   * @param why the reason in full, of this case
   */
  synchronized void add(String code, String why) {
    byCode.merge(code, new Count(1, why), (a, b) -> new Count(a.cases + 1, a.example));
  }

  /** {@return one line; empty if nothing was skipped} */
  synchronized String summary() {
    StringJoiner line = new StringJoiner("; ");
    byCode.forEach(
        (code, c) -> line.add(c.cases + " for " + code + " (like \"" + c.example + "\")"));
    return line.toString();
  }

  /** Prints the line, where there is something to say. */
  void print(String who) {
    String line = summary();
    if (!line.isEmpty()) {
      System.out.println("conformance kit: cases that " + who + " does not support: " + line);
    }
  }
}
