package io.moe4j.backend.cpu.ffi;

import java.io.IOException;
import java.io.InputStream;
import java.lang.foreign.Arena;
import java.lang.foreign.SymbolLookup;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Locale;
import org.jspecify.annotations.Nullable;

/**
 * Finds the compiled kernels of this machine's architecture in the jar and loads them. The library
 * is written to memory that has no name in any folder (memfd_create); where the system forbids
 * that, to a new folder that only this user can enter, and removed once it is loaded.
 */
final class NativeLibrary {
  private static final String ROOT = "/META-INF/moe4j/kernels/backend-cpu/";
  private static final String FILE = "libmoe.so";

  private NativeLibrary() {}

  /** The library cannot be used here; the message says why in a line. */
  static final class UnavailableException extends Exception {
    private static final long serialVersionUID = 1;

    UnavailableException(String message, Throwable cause) {
      super(message, cause);
    }

    UnavailableException(String message) {
      super(message);
    }
  }

  /** {@return the folder of this machine's library, like {@code linux-x86-64}} */
  static String target() {
    String os = System.getProperty("os.name", "unknown").toLowerCase(Locale.ROOT);
    String arch = System.getProperty("os.arch", "unknown").toLowerCase(Locale.ROOT);
    return (os.startsWith("linux") ? "linux" : os.replace(' ', '-'))
        + "-"
        + switch (arch) {
          case "amd64", "x86_64" -> "x86-64";
          default -> arch;
        };
  }

  /**
   * {@return the symbols, which stay loaded as long as the JVM runs}
   *
   * @throws UnavailableException if there is no library for this machine, or the system refuses it
   */
  @SuppressWarnings("restricted")
  static SymbolLookup load() throws UnavailableException {
    String target = target();
    byte[] content = content(target);
    String refusal;
    try {
      int fd = LibC.memoryFile("moe4j-kernels", content);
      if (fd >= 0) {
        try {
          return SymbolLookup.libraryLookup("/proc/self/fd/" + fd, Arena.global());
        } finally {
          LibC.close(fd);
        }
      }
      refusal = "memfd_create is refused";
    } catch (IllegalCallerException e) {
      throw denied(e);
    } catch (IllegalArgumentException | UnsatisfiedLinkError | ExceptionInInitializerError e) {
      refusal = oneLine(e);
    }
    return fromFolder(content, refusal);
  }

  private static byte[] content(String target) throws UnavailableException {
    try (InputStream in = NativeLibrary.class.getResourceAsStream(ROOT + target + "/" + FILE)) {
      if (in == null) {
        throw new UnavailableException("there are no compiled kernels for " + target);
      }
      return in.readAllBytes();
    } catch (IOException e) {
      throw new UnavailableException("the jar cannot be read: " + oneLine(e), e);
    }
  }

  @SuppressWarnings("restricted")
  private static SymbolLookup fromFolder(byte[] content, String refusal)
      throws UnavailableException {
    Path folder = null;
    Path file = null;
    try {
      folder = Files.createTempDirectory("moe4j"); // only the owner may enter
      file = Files.write(folder.resolve(FILE), content);
      return SymbolLookup.libraryLookup(file, Arena.global());
    } catch (IllegalCallerException e) {
      throw denied(e);
    } catch (IOException | IllegalArgumentException | UnsatisfiedLinkError e) {
      throw new UnavailableException(
          "the library loads neither from memory ("
              + refusal
              + ") nor from java.io.tmpdir ("
              + oneLine(e)
              + "); is the file damaged, or may nothing run from there?",
          e);
    } finally {
      delete(file);
      delete(folder);
    }
  }

  private static UnavailableException denied(IllegalCallerException e) {
    return new UnavailableException(
        "native access is denied to this code (--enable-native-access)", e);
  }

  private static void delete(@Nullable Path path) {
    try {
      if (path != null) {
        Files.deleteIfExists(path);
      }
    } catch (IOException e) {
      path.toFile().deleteOnExit();
    }
  }

  private static String oneLine(Throwable t) {
    return String.valueOf(t.getMessage()).replaceAll("\\s+", " ");
  }
}
