package io.moe4j.checkpoint;

import java.io.IOException;
import java.nio.file.DirectoryIteratorException;
import java.nio.file.DirectoryStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;

/** Looks one folder down for a file that is not where it was looked for. */
final class Folders {
  private static final int MAX_LOOKED_AT = 1000;
  private static final int MAX_NAMED = 3;

  private Folders() {}

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
