package io.moe4j.checkpoint;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.AccessDeniedException;
import java.nio.file.DirectoryIteratorException;
import java.nio.file.DirectoryStream;
import java.nio.file.FileSystemException;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;

/** Looks one folder down for a file that is not where it was looked for. */
final class Folders {
  private static final int MAX_LOOKED_AT = 1000;
  private static final int MAX_NAMED = 3;

  private Folders() {}

  /** Why a file could not be read or written, without the classes' names where there are words. */
  static String reason(Exception e) {
    Throwable cause =
        e instanceof UncheckedIOException u && u.getCause() != null ? u.getCause() : e;
    String said = String.valueOf(cause.getMessage());
    if (cause instanceof AccessDeniedException || said.endsWith("(Permission denied)")) {
      return "permission denied";
    }
    if (cause instanceof NoSuchFileException f) {
      return f.getFile() + " does not exist";
    }
    return cause instanceof FileSystemException f && f.getReason() != null
        ? String.valueOf(f.getReason())
        : cause.toString();
  }

  /**
   * Where a file is instead.
   *
   * @param directory where it is not
   * @param name the file
   * @return the end of a message, empty if it is nowhere
   */
  static String hint(Path directory, String name) {
    List<String> found = new ArrayList<>();
    boolean more = false;
    int lookedAt = 0;
    try (DirectoryStream<Path> entries = Files.newDirectoryStream(directory, Files::isDirectory)) {
      for (Path folder : entries) {
        if (++lookedAt > MAX_LOOKED_AT) {
          break;
        }
        if (Files.isRegularFile(folder.resolve(name))) {
          more = found.size() == MAX_NAMED;
          if (more) {
            break;
          }
          found.add(StrictJson.shorten(folder.toString()));
        }
      }
    } catch (IOException | DirectoryIteratorException e) {
      return "";
    }
    found.sort(null);
    return found.isEmpty()
        ? ""
        : "; it is one folder down: give "
            + String.join(" or ", found)
            + (more ? " or another one there" : "");
  }
}
