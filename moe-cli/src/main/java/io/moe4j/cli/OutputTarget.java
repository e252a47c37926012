package io.moe4j.cli;

import java.io.IOException;
import java.nio.file.FileSystemLoopException;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermission;
import java.util.Collections;
import java.util.EnumSet;

/**
 * Where a command may write: a new file, or one in the place of a regular file. A symbolic link is
 * followed to what it means, so that it stays a link. Devices, pipes and sockets are not replaced.
 */
final class OutputTarget {
  private static final int MAX_LINKS = 40;

  private OutputTarget() {}

  /**
   * Checks, before anything is computed, that a file can be written without harm.
   *
   * @param option the option that names it, for messages
   * @param given what the user wrote
   * @return the file itself, behind all links
   */
  static Path resolve(String option, Path given) {
    String what = option + " " + Text.line(given.toString());
    if (given.toString().equals("-")) {
      throw CliException.usage(
          option
              + " is \"-\": the result is a file and does not go to standard output; a file of that"
              + " name is ./-");
    }
    if (given.toString().isEmpty()) {
      throw CliException.usage(option + " is empty, must be a file");
    }
    Path target = behindLinks(what, given.toAbsolutePath());
    Path parent = target.getParent();
    if (parent == null || !Files.isDirectory(parent)) {
      throw output(what + ": the directory " + Text.line(parent + "") + " does not exist.");
    }
    if (Files.isDirectory(target)) {
      throw output(what + " is a directory; a file is expected.");
    }
    if (Files.exists(target) && !Files.isRegularFile(target)) {
      throw output(
          what
              + " is a device, a pipe or a socket, which would be replaced by a file; name a file.");
    }
    if (Files.exists(target) && isReadOnly(target)) {
      throw output(what + " is read-only; make it writable, or name another file.");
    }
    if (!Files.isWritable(parent)) {
      throw output(
          what + ": the directory " + Text.line(parent.toString()) + " may not be written.");
    }
    return target;
  }

  /** Replacing a file takes no permission of its own, and root needs none: the mode is the wish. */
  private static boolean isReadOnly(Path file) {
    if (!Files.isWritable(file)) {
      return true;
    }
    try {
      return Collections.disjoint(
          Files.getPosixFilePermissions(file),
          EnumSet.of(
              PosixFilePermission.OWNER_WRITE,
              PosixFilePermission.GROUP_WRITE,
              PosixFilePermission.OTHERS_WRITE));
    } catch (IOException | UnsupportedOperationException e) {
      return false; // no such permissions here
    }
  }

  private static Path behindLinks(String what, Path link) {
    Path at = link;
    try {
      for (int i = 0; Files.isSymbolicLink(at); i++) {
        requireNoDevice(what, at);
        if (i == MAX_LINKS) {
          throw new FileSystemLoopException(link.toString());
        }
        Path parent = at.getParent();
        Path next = Files.readSymbolicLink(at);
        at = parent == null ? next : parent.resolve(next);
      }
      return Files.exists(at, LinkOption.NOFOLLOW_LINKS) ? at.toRealPath() : at.normalize();
    } catch (IOException e) {
      throw new CliException(ExitCode.OUTPUT, what + " leads nowhere: " + e, e);
    }
  }

  /** {@code /dev/stdout} is a link to whatever file the shell has opened: not to be replaced. */
  private static void requireNoDevice(String what, Path at) {
    if ((at.startsWith("/dev") && !at.startsWith("/dev/shm")) || at.startsWith("/proc")) {
      throw output(
          what
              + " is a device, a pipe or a socket, which would be replaced by a file; name a file.");
    }
  }

  private static CliException output(String message) {
    return new CliException(ExitCode.OUTPUT, message);
  }
}
