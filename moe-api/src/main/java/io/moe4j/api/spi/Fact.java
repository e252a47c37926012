package io.moe4j.api.spi;

import java.util.Objects;
import java.util.regex.Pattern;

/**
 * One thing that {@code prepare} decided about a layer: which kernels run, where weights are, how
 * much memory they take. For people and for tools; nothing depends on it. A value.
 *
 * @param name what it is about: lower-case letters, digits and dashes, beginning with a letter. The
 *     project's own backends say {@code kernels}, {@code weights}, {@code threads}, and {@code
 *     shared} of a shared expert
 * @param text one line
 * @param bytes how much memory the fact speaks of; 0 = of none
 * @since 0.2.0
 */
public record Fact(String name, String text, long bytes) {
  private static final Pattern NAME = Pattern.compile("[a-z][a-z0-9-]*");

  /**
   * Checks the components.
   *
   * @param name what it is about
   * @param text one line
   * @param bytes at least 0
   * @throws IllegalArgumentException naming the component, what was given, what is accepted
   */
  public Fact {
    Objects.requireNonNull(name, "name");
    Objects.requireNonNull(text, "text");
    if (!NAME.matcher(name).matches()) {
      throw new IllegalArgumentException(
          "name is \""
              + name
              + "\", must be lower-case letters, digits and dashes, beginning with a letter");
    }
    if (text.isBlank() || text.indexOf('\n') >= 0 || text.indexOf('\r') >= 0) {
      throw new IllegalArgumentException(
          "text of " + name + " is \"" + text + "\", must be a line");
    }
    if (bytes < 0) {
      throw new IllegalArgumentException(
          "bytes of " + name + " is " + bytes + ", must be 0 or more");
    }
  }

  /**
   * {@return a fact that is not about memory}
   *
   * @param name what it is about
   * @param text one line
   */
  public static Fact of(String name, String text) {
    return new Fact(name, text, 0);
  }

  /** {@return like {@code weights: 1024 bytes, packed}} */
  @Override
  public String toString() {
    return name + ": " + (bytes > 0 ? bytes + " bytes, " : "") + text;
  }
}
