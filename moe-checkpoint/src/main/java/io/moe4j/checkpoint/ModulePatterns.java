package io.moe4j.checkpoint;

import com.google.re2j.Pattern;
import com.google.re2j.PatternSyntaxException;
import io.moe4j.api.CheckpointException;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.concurrent.TimeUnit;
import org.jspecify.annotations.Nullable;

/**
 * What a config says for modules by name or by regex: the first entry counts that fits. A regex
 * fits where it matches from the start of the name, as Python's {@code re.match} does. They come
 * from a file, so they run on an engine of linear time, bounded in size and all together in time.
 * Not thread-safe.
 *
 * @param <T> what is said
 */
final class ModulePatterns<T> {
  private static final int MAX_ENTRIES = 10_000;
  private static final int MAX_CHARS = 2000;
  private static final double MAX_SIZE = 20_000;
  private static final long MAX_NANOS = TimeUnit.SECONDS.toNanos(5);

  private final String where;
  private final List<Entry<T>> entries = new ArrayList<>();
  private long nanos;

  /**
   * @param name null for a regex
   * @param regex null for a name
   */
  private record Entry<T>(@Nullable String name, @Nullable Pattern regex, T value) {}

  /**
   * @param where file and key, for messages
   */
  ModulePatterns(String where) {
    this.where = where;
  }

  void addName(String name, T value) {
    requireRoom();
    entries.add(new Entry<>(name, null, value));
  }

  void addRegex(String regex, T value) {
    requireRoom();
    long start = System.nanoTime();
    entries.add(new Entry<>(null, compile(regex), value));
    requireTime(start);
  }

  private void requireRoom() {
    if (entries.size() == MAX_ENTRIES) {
      throw new CheckpointException(where + " has more than " + MAX_ENTRIES + " entries");
    }
  }

  private void requireTime(long start) {
    nanos += System.nanoTime() - start;
    if (nanos > MAX_NANOS) {
      throw new CheckpointException(
          where + ": its patterns take over " + TimeUnit.NANOSECONDS.toSeconds(MAX_NANOS) + " s");
    }
  }

  private Pattern compile(String regex) {
    String shown = where + ": '" + StrictJson.shorten(regex) + "' ";
    if (regex.length() > MAX_CHARS || PatternSize.of(regex) > MAX_SIZE) {
      throw new CheckpointException(
          shown
              + "is too large for a pattern: accepted are "
              + MAX_CHARS
              + " characters, and "
              + (long) MAX_SIZE
              + " parts with repetitions written out");
    }
    try {
      return PythonRegex.compile(regex);
    } catch (PatternSyntaxException e) {
      throw new CheckpointException(
          shown
              + "is no regular expression that is understood here (RE2 syntax, which has no"
              + " look-around and no back references): "
              + e.getDescription(),
          e);
    } catch (StackOverflowError e) {
      throw new CheckpointException(shown + "nests too deep for a pattern", e);
    }
  }

  /** What the first entry that fits says. */
  Optional<T> find(String module) {
    long start = System.nanoTime();
    Optional<T> found = Optional.empty();
    for (Entry<T> e : entries) {
      boolean fits =
          e.regex() == null ? module.equals(e.name()) : e.regex().matcher(module).lookingAt();
      if (fits) {
        found = Optional.of(e.value());
        break;
      }
    }
    requireTime(start);
    return found;
  }
}
