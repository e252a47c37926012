package io.moe4j.cuda.tuning;

import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.spi.TuningStatus;
import io.moe4j.cuda.CudaDeviceProvider;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.BasicFileAttributes;
import java.nio.file.attribute.FileTime;
import java.util.List;
import java.util.Optional;
import java.util.function.Supplier;
import org.jspecify.annotations.Nullable;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;
import org.slf4j.event.Level;

/**
 * What was tuned for a backend, for layers that are built. The file is read when the first layer
 * is, and again only after it changed; why it is not used is logged as often. Nothing but {@link
 * TuningFile#merge} throws. Safe for several threads.
 *
 * @param <E> the backend's entries
 * @since 0.2.0
 */
public final class TuningStore<E extends TunedEntry> {
  private static final Logger LOG = LoggerFactory.getLogger(TuningStore.class);

  /** Which version of a file was read. */
  private record Stamp(Path file, FileTime modified, long size, @Nullable Object key) {}

  /**
   * A file's content.
   *
   * @param tables what it holds
   * @param problem why it cannot be used, or null
   */
  private record Content<E extends TunedEntry>(
      @Nullable Stamp stamp, List<TunedTable<E>> tables, @Nullable String problem) {
    int entries() {
      return tables.stream().mapToInt(t -> t.entries().size()).sum();
    }

    int entries(TunedTable.Key machine) {
      return tables.stream()
          .filter(t -> t.key().sameMachine(machine))
          .mapToInt(t -> t.entries().size())
          .sum();
    }
  }

  private final TuningFile<E> file;
  private final TuningPlace place;
  private final String what;

  /** The content last read: a memory of the file, not a setting. */
  private volatile Content<E> last = new Content<>(null, List.of(), null);

  /** A file that was asked for and not there: one warning is enough. */
  private volatile @Nullable Path missing;

  /**
   * A store; reads nothing yet.
   *
   * @param file how it is written
   * @param place where it is
   * @param what is in it, for the log, like {@code tuned tiles}
   */
  public TuningStore(TuningFile<E> file, TuningPlace place, String what) {
    this.file = file;
    this.place = place;
    this.what = what;
  }

  /** {@return where it is; empty if that was turned off or there is no place} */
  public Optional<Path> path() {
    return place.current();
  }

  /** {@return how it is written} */
  public TuningFile<E> file() {
    return file;
  }

  /**
   * {@return a layer's entries; with a log line where there is a file that is new and of no use}
   *
   * @param key of the layer
   */
  public List<E> entries(TunedTable.Key key) {
    Path path = place.current().orElse(null);
    return path == null
        ? List.of()
        : read(path, key).tables().stream()
            .filter(t -> t.key().equals(key))
            .flatMap(t -> t.entries().stream())
            .toList();
  }

  private Content<E> read(Path path, TunedTable.Key key) {
    Stamp stamp = stamp(path);
    if (stamp == null && place.isNamed() && !path.equals(missing)) {
      missing = path;
      LOG.warn(
          "{} names {}, which is not there or cannot be read: the built-in table serves",
          place.property(),
          path);
    }
    Content<E> known = last;
    if (stamp != null && stamp.equals(known.stamp())) {
      return known;
    }
    Content<E> now = read(path, stamp);
    last = now;
    if (now.problem() != null) {
      LOG.warn(
          "{} in {} are not used, the built-in table is: {}; moe tune writes a new one",
          what,
          path,
          now.problem());
    } else if (now.entries() > 0 && now.entries(key) == 0) {
      // A home directory may serve machines with other cards; other kernels come with an update.
      LOG.atLevel(hasCard(now, key) ? Level.WARN : Level.INFO)
          .log("{} in {} are not used, the built-in table is: {}", what, path, others(now, key));
    }
    return now;
  }

  private Content<E> read(Path path, @Nullable Stamp stamp) {
    try {
      return new Content<>(stamp, file.read(path).orElse(List.of()), null);
    } catch (TuningFile.Unusable e) {
      return new Content<>(stamp, List.of(), String.valueOf(e.getMessage()));
    }
  }

  private static @Nullable Stamp stamp(Path path) {
    try {
      BasicFileAttributes a = Files.readAttributes(path, BasicFileAttributes.class);
      return new Stamp(path, a.lastModifiedTime(), a.size(), a.fileKey());
    } catch (IOException | SecurityException e) {
      return null;
    }
  }

  private String others(Content<E> content, TunedTable.Key key) {
    return hasCard(content, key)
        ? "they were measured with other kernels than this version has; run moe tune again"
        : "they were measured on another card than " + key.device() + " (" + key.capability() + ")";
  }

  private boolean hasCard(Content<E> content, TunedTable.Key key) {
    return content.tables().stream().anyMatch(t -> t.key().sameCard(key));
  }

  /**
   * {@return what is there for a card, see {@link TuningStatus}}
   *
   * @param device the card, or null
   * @param kernels hash of the backend's kernels, see {@link TuningFile#kernelSet}
   */
  public TuningStatus status(@Nullable DeviceInfo device, Supplier<String> kernels) {
    Path path = place.current().orElse(null);
    if (path == null) {
      return new TuningStatus(
          Optional.empty(),
          true,
          0,
          0,
          place.isOff()
              ? "turned off by " + place.property()
              : "this system has no cache directory; " + place.property() + " names a file");
    }
    Content<E> content = read(path, (Stamp) null);
    if (content.problem() != null) {
      return new TuningStatus(Optional.of(path), false, 0, 0, content.problem());
    }
    int entries = content.entries();
    if (entries == 0) {
      return new TuningStatus(
          Optional.of(path),
          true,
          0,
          0,
          "none yet, the built-in table serves; moe tune makes some");
    }
    if (device == null || device.capability().isEmpty()) {
      return new TuningStatus(
          Optional.of(path), true, entries, 0, entries + " entries, and no card to use them");
    }
    TunedTable.Key machine =
        new TunedTable.Key(
            device.name(),
            CudaDeviceProvider.capability(device).toString(),
            kernels.get(),
            "",
            "",
            0,
            0,
            0,
            0);
    int applying = content.entries(machine);
    return new TuningStatus(
        Optional.of(path),
        true,
        entries,
        applying,
        applying
            + " of "
            + entries
            + " entries apply to "
            + device.name()
            + (applying == 0 ? ": " + others(content, machine) : ""));
  }
}
