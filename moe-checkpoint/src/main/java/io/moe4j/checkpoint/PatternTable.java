package io.moe4j.checkpoint;

import com.google.re2j.Pattern;
import com.google.re2j.PatternSyntaxException;
import io.moe4j.api.AdapterException;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.OptionalDouble;
import java.util.concurrent.TimeUnit;
import org.jspecify.annotations.Nullable;

/**
 * {@code rank_pattern} or {@code alpha_pattern}: the value of the first entry whose regex, behind
 * an optional prefix that ends in a dot, matches a parameter's whole name. The regexes come from
 * the file, so they run on an engine whose time is linear in the name (<a
 * href="https://github.com/google/re2j">RE2/J</a>), are bounded in size, and all of them together
 * in time: what would take without end is an error, not a hang. Look-around and back references,
 * which such an engine does not have, are errors too. Not thread-safe.
 */
final class PatternTable {
  private static final int MAX_PATTERN_CHARS = 1000;
  private static final int MAX_ENTRIES = 100_000;
  private static final int MAX_DISPUTED = 16;

  /** Of a pattern with its counted repetitions written out: what it is compiled to. */
  private static final double MAX_SIZE = 20_000;

  private static final long MAX_NANOS = TimeUnit.SECONDS.toNanos(3);

  /** Of all names, to look for entries that differ. */
  private static final long MAX_DISPUTE_NANOS = TimeUnit.MILLISECONDS.toNanos(300);

  private final String where;
  private final List<Entry> regexes = new ArrayList<>();

  /**
   * Keys that are names: found by their text, because there may be one for every module. First by
   * where their dots are (a dot is any character, also in what looks like a name), then by all.
   */
  private final Map<String, Map<String, Entry>> names = new HashMap<>();

  /** The first keys of {@link #names}, by length. */
  private final Map<Integer, List<String>> dots = new HashMap<>();

  /** What was asked before: a pair of factors asks more than once. */
  private final Map<String, OptionalDouble> found = new HashMap<>();

  /** The first few, to see whether several match. */
  private final List<Entry> all = new ArrayList<>();

  private long nanos;
  private long disputeNanos;

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
    long start = System.nanoTime();
    for (Map.Entry<String, Double> e : values.entrySet()) {
      String key = WrapperSegments.stripPattern(e.getKey());
      Entry entry = new Entry(order++, key, compile(key), e.getValue());
      if (all.size() <= MAX_DISPUTED) {
        all.add(entry);
      }
      if (entry.regex() == null) {
        String shape = dots(key);
        names
            .computeIfAbsent(
                shape,
                n -> {
                  dots.computeIfAbsent(n.length(), l -> new ArrayList<>()).add(n);
                  return new HashMap<>();
                })
            .putIfAbsent(key, entry);
      } else {
        regexes.add(entry);
      }
      requireTime(key, "compile", System.nanoTime() - start);
    }
    nanos = System.nanoTime() - start;
  }

  private void requireTime(String key, String what, long taken) {
    if (taken > MAX_NANOS) {
      throw new AdapterException(
          where
              + ": its patterns take too long to "
              + what
              + ", up to '"
              + StrictJson.shorten(key)
              + "' over "
              + TimeUnit.NANOSECONDS.toSeconds(MAX_NANOS)
              + " seconds");
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
    if (WrapperSegments.isLeft(key)) {
      throw new AdapterException(
          where
              + ": '"
              + StrictJson.shorten(key)
              + "' names a wrapper of PyTorch's in a way that is not understood; names are matched"
              + " without such segments");
    }
    if (PatternSize.of(key) > MAX_SIZE) {
      throw new AdapterException(
          where
              + ": '"
              + StrictJson.shorten(key)
              + "' repeats so much that it takes too long to match; with its counted repetitions"
              + " written out it may have at most "
              + (long) MAX_SIZE
              + " parts");
    }
    try {
      return PythonRegex.compile("(?:.*\\.)?(?:" + key + ")");
    } catch (PatternSyntaxException e) {
      throw new AdapterException(
          where
              + ": '"
              + StrictJson.shorten(key)
              + "' is no regular expression that is understood here (RE2 syntax, which has no"
              + " look-around and no back references): "
              + e.getDescription(),
          e);
    } catch (StackOverflowError e) {
      throw new AdapterException(
          where + ": '" + StrictJson.shorten(key) + "' nests too deep for a pattern", e);
    }
  }

  /** Letters, digits and dots only: a module's name or the end of one. */
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

  /**
   * Whether several entries match and say different things. Long tables are not looked at: they
   * name modules one by one. Nor is more looked at than some time allows: no is no promise.
   *
   * @param name of the parameter
   */
  boolean isDisputed(String name) {
    // It takes nothing from the time of what is needed, and that its time is over refuses nothing.
    if (all.size() < 2 || all.size() > MAX_DISPUTED || disputeNanos > MAX_DISPUTE_NANOS) {
      return false;
    }
    long start = System.nanoTime();
    boolean disputed =
        all.stream()
                .filter(e -> e.regex() == null ? isEnd(e.key(), name) : e.regex().matches(name))
                .mapToDouble(Entry::value)
                .distinct()
                .count()
            > 1;
    disputeNanos += System.nanoTime() - start;
    return disputed;
  }

  /** Whether a plain key, whose dots are any character, is the end of a name. */
  private static boolean isEnd(String key, String name) {
    int start = name.length() - key.length();
    if (start < 0 || (start > 0 && name.charAt(start - 1) != '.')) {
      return false;
    }
    for (int i = 0; i < key.length(); i++) {
      if (key.charAt(i) != '.' && key.charAt(i) != name.charAt(start + i)) {
        return false;
      }
    }
    return true;
  }

  private static String dots(String key) {
    StringBuilder shape = new StringBuilder(key);
    for (int i = 0; i < key.length(); i++) {
      shape.setCharAt(i, key.charAt(i) == '.' ? '.' : ' ');
    }
    return shape.toString();
  }

  private @Nullable Entry byName(String name, long since) {
    Entry best = null;
    for (int start = 0; start >= 0; ) {
      String end = name.substring(start);
      for (String shape : dots.getOrDefault(end.length(), List.of())) {
        StringBuilder masked = new StringBuilder(end);
        for (int i = shape.indexOf('.'); i >= 0; i = shape.indexOf('.', i + 1)) {
          masked.setCharAt(i, '.');
        }
        Entry e = names.getOrDefault(shape, Map.of()).get(masked.toString());
        if (e != null && (best == null || e.order() < best.order())) {
          best = e;
        }
        requireTime(shape, "match", nanos + System.nanoTime() - since);
      }
      int dot = name.indexOf('.', start);
      start = dot < 0 ? -1 : dot + 1;
    }
    return best;
  }

  private OptionalDouble search(String name) {
    long start = System.nanoTime();
    Entry best = byName(name, start);
    for (Entry e : regexes) {
      if (best != null && e.order() > best.order()) {
        break;
      }
      Pattern regex = e.regex();
      boolean matches = regex != null && regex.matches(name);
      requireTime(e.key(), "match", nanos + System.nanoTime() - start);
      if (matches) {
        best = e;
        break;
      }
    }
    nanos += System.nanoTime() - start;
    return best == null ? OptionalDouble.empty() : OptionalDouble.of(best.value());
  }
}
