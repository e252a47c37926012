package io.moe4j.checkpoint;

import io.moe4j.api.AdapterException;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.OptionalDouble;
import java.util.regex.Pattern;
import java.util.regex.PatternSyntaxException;
import org.jspecify.annotations.Nullable;

/**
 * {@code rank_pattern} or {@code alpha_pattern}: the value of the first entry whose regex, behind
 * an optional prefix that ends in a dot, matches a parameter's whole name. The regexes come from
 * the file, so matching has a budget: one that backtracks without end is an error, not a hang. Not
 * thread-safe.
 */
final class PatternTable {
  private static final int MAX_PATTERN_CHARS = 1000;
  private static final int MAX_ENTRIES = 100_000;
  private static final long MAX_STEPS_PER_MATCH = 200_000;
  private static final long MAX_STEPS = 1_000_000_000;

  private final String where;
  private final List<Entry> regexes = new ArrayList<>();

  /** Keys that are names: found by their text, because there may be one for every module. */
  private final Map<String, Entry> names = new HashMap<>();

  /** What was asked before: a pair of factors asks more than once. */
  private final Map<String, OptionalDouble> found = new HashMap<>();

  private long steps;

  private record Entry(int order, String key, @Nullable Pattern regex, double value) {}

  /**
   * @param where file and key, for messages
   * @param values regex to value, in the order of the file
   */
  PatternTable(String where, Map<String, Double> values) {
    this.where = where;
    if (values.size() > MAX_ENTRIES) {
      throw new AdapterException(
          where + " has " + values.size() + " entries; accepted are at most " + MAX_ENTRIES);
    }
    int order = 0;
    for (Map.Entry<String, Double> e : values.entrySet()) {
      String key = e.getKey();
      Entry entry = new Entry(order++, key, compile(key), e.getValue());
      if (entry.regex() == null) {
        names.put(key, entry);
      } else {
        regexes.add(entry);
      }
    }
  }

  private @Nullable Pattern compile(String key) {
    if (key.length() > MAX_PATTERN_CHARS) {
      throw new AdapterException(
          where
              + " has a pattern of "
              + key.length()
              + " characters; accepted are at most "
              + MAX_PATTERN_CHARS);
    }
    if (isPlain(key)) {
      return null;
    }
    try {
      return Pattern.compile("(.*\\.)?(" + key + ")");
    } catch (PatternSyntaxException e) {
      throw new AdapterException(
          where
              + ": '"
              + StrictJson.shorten(key)
              + "' is no regular expression that is understood here: "
              + e.getDescription(),
          e);
    } catch (StackOverflowError e) {
      throw new AdapterException(
          where + ": '" + StrictJson.shorten(key) + "' nests too deep for a pattern", e);
    }
  }

  /**
   * Letters, digits and dots only: a module's name or the end of one. A dot in it is taken for a
   * dot, since names have nothing else where a name has a dot.
   */
  private static boolean isPlain(String key) {
    return !key.isEmpty()
        && key.chars()
            .allMatch(
                c -> c == '.' || c == '_' || c == '-' || (c < 128 && Character.isLetterOrDigit(c)));
  }

  /**
   * The value for a parameter.
   *
   * @param name its full name
   * @return the first match's value, or empty
   */
  OptionalDouble find(String name) {
    OptionalDouble known = found.get(name);
    if (known == null) {
      known = search(name);
      found.put(name, known);
    }
    return known;
  }

  private OptionalDouble search(String name) {
    Entry best = null;
    for (int start = 0; start >= 0; ) {
      Entry e = names.get(name.substring(start));
      if (e != null && (best == null || e.order() < best.order())) {
        best = e;
      }
      int dot = name.indexOf('.', start);
      start = dot < 0 ? -1 : dot + 1;
    }
    for (Entry e : regexes) {
      if (best != null && e.order() > best.order()) {
        break;
      }
      Pattern regex = e.regex();
      if (regex != null && matches(regex, e.key(), name)) {
        return OptionalDouble.of(e.value());
      }
    }
    return best == null ? OptionalDouble.empty() : OptionalDouble.of(best.value());
  }

  private boolean matches(Pattern regex, String key, String name) {
    Budgeted text = new Budgeted(name);
    try {
      return regex.matcher(text).matches();
    } catch (BudgetExceeded | StackOverflowError e) {
      throw new AdapterException(
          where
              + ": '"
              + StrictJson.shorten(key)
              + "' takes too long to match against '"
              + StrictJson.shorten(name)
              + "' (catastrophic backtracking?)",
          e);
    } finally {
      steps += text.reads;
    }
  }

  private static final class BudgetExceeded extends RuntimeException {
    private static final long serialVersionUID = 1L;

    BudgetExceeded() {
      super("regex step budget exceeded", null, false, false);
    }
  }

  /** Counts how often the matcher looks at a character. */
  private final class Budgeted implements CharSequence {
    private final String text;
    private long reads;

    Budgeted(String text) {
      this.text = text;
    }

    @Override
    public char charAt(int index) {
      if (++reads > MAX_STEPS_PER_MATCH || steps + reads > MAX_STEPS) {
        throw new BudgetExceeded();
      }
      return text.charAt(index);
    }

    @Override
    public int length() {
      return text.length();
    }

    @Override
    public CharSequence subSequence(int start, int end) {
      return text.substring(start, end);
    }

    @Override
    public String toString() {
      return text;
    }
  }
}
