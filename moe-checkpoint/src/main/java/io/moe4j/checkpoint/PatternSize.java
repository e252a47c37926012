package io.moe4j.checkpoint;

import java.util.ArrayDeque;
import java.util.Deque;

/**
 * How large a regular expression becomes when its counted repetitions are written out, which is
 * what a linear engine does. Nothing else of its syntax is checked.
 */
final class PatternSize {
  private final String pattern;
  private final Deque<Double> outer = new ArrayDeque<>();
  private double group;
  private double atom;

  private PatternSize(String pattern) {
    this.pattern = pattern;
  }

  /**
   * {@return about as many parts as it is compiled to; may exceed any integer}
   *
   * @param pattern any text
   */
  static double of(String pattern) {
    PatternSize size = new PatternSize(pattern);
    for (int i = 0; i < pattern.length(); ) {
      i = size.read(i);
    }
    double all = size.group;
    for (double g : size.outer) {
      all += g;
    }
    return all;
  }

  /** Reads what begins at a place; returns where it ends. */
  private int read(int i) {
    switch (pattern.charAt(i)) {
      case '\\' -> {
        add(1);
        return i + 2;
      }
      case '[' -> {
        add(1);
        return endOfClass(i);
      }
      case '(' -> {
        outer.push(group);
        group = 1;
        atom = 1;
      }
      case ')' -> {
        double inner = group;
        group = outer.isEmpty() ? 0 : outer.pop();
        add(inner);
      }
      case '{' -> repeat(i);
      default -> add(1);
    }
    return i + 1;
  }

  private void add(double size) {
    atom = size;
    group += size;
  }

  /** The numbers in the braces add no parts of their own, but count as such if they are text. */
  private void repeat(int open) {
    double most = 1;
    double number = 0;
    for (int i = open + 1; i < pattern.length() && pattern.charAt(i) != '}'; i++) {
      char c = pattern.charAt(i);
      number = c >= '0' && c <= '9' ? number * 10 + (c - '0') : 0;
      most = Math.max(most, number);
    }
    group += atom * (most - 1);
    atom *= most;
  }

  private int endOfClass(int open) {
    for (int i = open + 2; i < pattern.length(); i++) {
      if (pattern.charAt(i) == '\\') {
        i++;
      } else if (pattern.charAt(i) == ']') {
        return i + 1;
      }
    }
    return pattern.length();
  }
}
