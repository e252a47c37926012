package io.moe4j.api.config;

import io.moe4j.api.SettingException;
import java.util.Arrays;
import java.util.Locale;
import java.util.function.Function;
import java.util.function.Supplier;
import java.util.stream.Collectors;
import org.jspecify.annotations.Nullable;

/**
 * Reads system properties that are settings, all in one way: space around a value does not count,
 * nor does upper or lower case; a blank value is like none. Whatever else is not accepted is an
 * error.
 *
 * @since 0.2.0
 */
public final class SystemSettings {
  private SystemSettings() {}

  /**
   * {@return what a property is set to, stripped; null where it is not set or blank}
   *
   * @param property its name
   */
  public static @Nullable String text(String property) {
    String given = System.getProperty(property);
    return given == null || given.isBlank() ? null : given.strip();
  }

  /**
   * {@return what is mistyped, for {@link io.moe4j.api.spi.Support}; null where nothing is} A
   * plugin asks where it says whether it fits, so that a mistyped property is a reason and not an
   * error later on.
   *
   * @param read reads one property or several, with this class
   */
  public static @Nullable String fault(Supplier<?> read) {
    try {
      var _ = read.get();
      return null;
    } catch (SettingException e) {
      return e.getMessage();
    }
  }

  /**
   * {@return what a property says, {@code true} or {@code false}} One that is set without a value,
   * {@code -Dname}, is true, as everywhere in Java.
   *
   * @param property its name
   * @param usual where it is not set
   * @throws SettingException if it says something else
   */
  public static boolean isTrue(String property, boolean usual) {
    String given = System.getProperty(property);
    if (given == null) {
      return usual;
    }
    return switch (given.strip().toLowerCase(Locale.ROOT)) {
      case "", "true" -> true;
      case "false" -> false;
      default -> throw new SettingException(property, given, "true, false");
    };
  }

  /**
   * {@return which of several values a property names}
   *
   * @param property its name
   * @param usual where it is not set
   * @param accepted the values
   * @param text the word for each of them
   * @param <E> type of the values
   * @throws SettingException if it names none of them
   */
  public static <E> E oneOf(String property, E usual, E[] accepted, Function<E, String> text) {
    String given = text(property);
    if (given == null) {
      return usual;
    }
    for (E e : accepted) {
      if (text.apply(e).equalsIgnoreCase(given)) {
        return e;
      }
    }
    throw new SettingException(
        property, given, Arrays.stream(accepted).map(text).collect(Collectors.joining(", ")));
  }

  /**
   * {@return the number that a property gives}
   *
   * @param property its name
   * @param usual where it is not set
   * @param least accepted
   * @param most accepted; {@link Integer#MAX_VALUE} = any
   * @throws SettingException if it gives none, or one that is not accepted
   */
  public static int number(String property, int usual, int least, int most) {
    String given = text(property);
    if (given == null) {
      return usual;
    }
    try {
      int n = Integer.parseInt(given);
      if (n >= least && n <= most) {
        return n;
      }
    } catch (NumberFormatException e) {
      // said below
    }
    throw new SettingException(
        property,
        given,
        most == Integer.MAX_VALUE ? "whole numbers from " + least + " on" : least + ".." + most);
  }
}
