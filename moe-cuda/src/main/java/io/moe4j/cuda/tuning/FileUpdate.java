package io.moe4j.cuda.tuning;

import java.io.IOException;
import java.io.InputStream;
import java.nio.channels.FileChannel;
import java.nio.channels.FileLock;
import java.nio.file.AtomicMoveNotSupportedException;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.util.Optional;
import java.util.UUID;
import org.jspecify.annotations.Nullable;

/**
 * Small files that several processes read and write. A reader sees the whole old content or the
 * whole new one. Writers take turns, held by a lock on an empty file beside it, {@code NAME.lock},
 * which stays; where the file system has no locks, of two writers at once one may lose what it
 * added. Safe for several threads.
 *
 * @since 0.2.0
 */
public final class FileUpdate {
  /** File locks are the process's; threads take turns by this. */
  private static final Object TURN = new Object();

  /** Makes the new content out of the old one. */
  @FunctionalInterface
  public interface Change {
    /**
     * {@return the new content}
     *
     * @param file to read the old content from, links resolved; it need not be there
     * @throws IOException if there is none; the file stays as it is
     */
    byte[] content(Path file) throws IOException;
  }

  private FileUpdate() {}

  /**
   * {@return the content of a file; empty if there is no such file}
   *
   * @param file any
   * @param most bytes that it may have
   * @throws IOException if it is not a regular file, is larger or cannot be read; the message goes
   *     on after the file's name, like {@code is not a regular file}
   */
  public static Optional<byte[]> read(Path file, int most) throws IOException {
    if (!Files.exists(file)) {
      return Optional.empty();
    }
    if (!Files.isRegularFile(file)) {
      throw new IOException("is not a regular file");
    }
    byte[] bytes;
    try (InputStream in = Files.newInputStream(file)) {
      bytes = in.readNBytes(most + 1);
    } catch (NoSuchFileException e) {
      return Optional.empty();
    } catch (IOException e) {
      throw new IOException("cannot be read: " + e, e);
    }
    if (bytes.length > most) {
      throw new IOException("is larger than " + most + " bytes");
    }
    return Optional.of(bytes);
  }

  /**
   * Changes a file, or makes it, and its directory too.
   *
   * @param file a regular one, if it is there; a link stays one
   * @param change called once, when it is this writer's turn
   * @throws IOException if it cannot be written, or the change throws it; the file is then as it
   *     was
   */
  public static void run(Path file, Change change) throws IOException {
    Path directory = file.toAbsolutePath().getParent();
    if (directory != null) {
      Files.createDirectories(directory);
    }
    Path target = Files.exists(file) ? file.toRealPath() : file.toAbsolutePath();
    synchronized (TURN) {
      try (FileChannel channel = open(target);
          FileLock _ = lock(channel)) {
        replace(target, change.content(target));
      }
    }
  }

  /** Null where there can be none: another user's, or a directory that may only be read. */
  private static @Nullable FileChannel open(Path target) {
    try {
      return FileChannel.open(
          target.resolveSibling(target.getFileName() + ".lock"),
          StandardOpenOption.CREATE,
          StandardOpenOption.WRITE,
          LinkOption.NOFOLLOW_LINKS);
    } catch (IOException e) {
      return null;
    }
  }

  private static @Nullable FileLock lock(@Nullable FileChannel channel) {
    try {
      return channel == null ? null : channel.lock();
    } catch (IOException e) {
      return null; // a file system without locks
    }
  }

  private static void replace(Path file, byte[] bytes) throws IOException {
    // Not Files.createTempFile: the file should get the user's usual permissions. Nobody knows the
    // name before, so nothing can lie there.
    Path fresh = file.resolveSibling("." + file.getFileName() + "." + UUID.randomUUID());
    try {
      Files.write(fresh, bytes, StandardOpenOption.CREATE_NEW, StandardOpenOption.WRITE);
      try {
        Files.move(
            fresh, file, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
      } catch (AtomicMoveNotSupportedException e) {
        Files.move(fresh, file, StandardCopyOption.REPLACE_EXISTING);
      }
    } finally {
      Files.deleteIfExists(fresh);
    }
  }
}
