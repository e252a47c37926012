package io.moe4j.comm.nccl;

import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.lang.foreign.ValueLayout;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Optional;
import java.util.function.Supplier;
import org.jspecify.annotations.Nullable;

/**
 * The NCCL of this process: there is one, for the bindings are linked to it. Looked for when first
 * asked for, kept until the process ends. Finding and loading it touches no device.
 *
 * @param path its file
 * @param version as the library itself says
 */
record NcclLibrary(Path path, NcclVersion version) {
  /** The file. */
  static final String FILE = "libnccl.so.2";

  private static final String INSTALL = "pip install nvidia-nccl-cu13";

  /** What the bindings link whatever the version. */
  private static final List<String> SYMBOLS =
      List.of(
          "ncclGetVersion",
          "ncclGetUniqueId",
          "ncclCommInitRankConfig",
          "ncclCommFinalize",
          "ncclCommDestroy",
          "ncclCommAbort",
          "ncclCommGetAsyncError",
          "ncclGetErrorString",
          "ncclGetLastError",
          "ncclAllGather",
          "ncclReduceScatter",
          "ncclAllReduce",
          "ncclSend",
          "ncclRecv",
          "ncclGroupStart",
          "ncclGroupEnd");

  private static @Nullable NcclLibrary loaded;

  /** An answer that is looked for once. Safe for several threads. */
  static final class Installed {
    /** That of this process's properties and environment. */
    static final Installed HERE = new Installed(NcclPlaces::ofThisProcess);

    private final Supplier<NcclPlaces> places;
    private @Nullable NcclLibrary library;
    private @Nullable String reason;

    Installed(Supplier<NcclPlaces> places) {
      this.places = places;
    }

    private synchronized void look() {
      if (library == null && reason == null) {
        try {
          library = load(find(places.get()));
        } catch (UnavailableException e) {
          reason = e.reason();
        }
      }
    }

    /** {@return the library, loaded; empty where there is none} */
    synchronized Optional<NcclLibrary> library() {
      look();
      return Optional.ofNullable(library);
    }

    /** {@return why there is none; empty where there is one} */
    synchronized Optional<String> reason() {
      look();
      return Optional.ofNullable(reason);
    }
  }

  /**
   * Looks in all places, in order: what the user named and nothing else; the folders of the dynamic
   * loader and of CUDA; the folders of Python packages.
   *
   * @return the first that serves
   * @throws UnavailableException with the reason: of the first file that was found but does not
   *     serve, or that none was found
   */
  static NcclLibrary find(NcclPlaces places) throws UnavailableException {
    UnavailableException first = null;
    for (Path file : places.files()) {
      if (!Files.isRegularFile(file)) {
        continue;
      }
      try {
        return examine(file);
      } catch (UnavailableException e) {
        first = first == null ? e : first;
      }
    }
    if (first != null) {
      throw first;
    }
    throw new UnavailableException(
        places
            .given()
            .map(g -> "there is no " + FILE + " at " + g)
            .orElseGet(() ->
                "no "
                    + FILE
                    + " was found in "
                    + places.loader().size()
                    + " folders of the dynamic loader and "
                    + places.sites().size()
                    + " folders of Python packages: "
                    + INSTALL
                    + ", or name one with "
                    + NcclPlaces.PATH_PROPERTY));
  }

  /** Looks at a library and lets go of it again. */
  static NcclLibrary examine(Path file) throws UnavailableException {
    try (Arena arena = Arena.ofConfined()) {
      SymbolLookup symbols;
      try {
        symbols = SymbolLookup.libraryLookup(file, arena);
      } catch (IllegalArgumentException e) {
        throw new UnavailableException(file + " could not be loaded: " + e.getMessage(), e);
      }
      List<String> missing = SYMBOLS.stream().filter(s -> symbols.find(s).isEmpty()).toList();
      MemorySegment ask = symbols.find("ncclGetVersion").orElse(null);
      NcclVersion version = ask == null ? null : version(file, ask, arena);
      if (version != null && !version.isAccepted()) {
        throw new UnavailableException(
            file + " is NCCL " + version + ", must be " + NcclVersion.ACCEPTED + ": " + INSTALL);
      }
      if (version == null || !missing.isEmpty()) {
        throw new UnavailableException(
            file + " lacks " + String.join(", ", missing) + ": no NCCL of " + NcclVersion.ACCEPTED);
      }
      return new NcclLibrary(file.toAbsolutePath().normalize(), version);
    }
  }

  private static NcclVersion version(Path file, MemorySegment function, Arena arena)
      throws UnavailableException {
    MemorySegment code = arena.allocate(ValueLayout.JAVA_INT);
    int result;
    try {
      result =
          (int)
              Linker.nativeLinker()
                  .downcallHandle(
                      function, FunctionDescriptor.of(ValueLayout.JAVA_INT, ValueLayout.ADDRESS))
                  .invokeExact(code);
    } catch (RuntimeException | Error e) {
      throw e;
    } catch (Throwable e) {
      throw new AssertionError("a downcall throws nothing of its own", e);
    }
    if (result != 0) {
      throw new UnavailableException(file + ": ncclGetVersion answers with error " + result);
    }
    return NcclVersion.ofCode(code.get(ValueLayout.JAVA_INT, 0));
  }

  /**
   * Loads a library that was found for the bindings, once in a process.
   *
   * @throws UnavailableException if the process has loaded another file before
   */
  static synchronized NcclLibrary load(NcclLibrary found) throws UnavailableException {
    NcclLibrary known = loaded;
    if (known != null) {
      if (known.path.equals(found.path)) {
        return known;
      }
      throw new UnavailableException(
          "this process has loaded "
              + known.path
              + " (NCCL "
              + known.version
              + ") already and cannot load "
              + found.path
              + " beside it");
    }
    try {
      System.load(found.path.toString());
    } catch (UnsatisfiedLinkError e) {
      throw new UnavailableException(found.path + " could not be loaded: " + e.getMessage(), e);
    }
    loaded = found;
    return found;
  }
}
