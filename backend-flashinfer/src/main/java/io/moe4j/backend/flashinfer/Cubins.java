package io.moe4j.backend.flashinfer;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandle;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.MethodType;
import java.nio.file.Files;
import java.nio.file.InvalidPathException;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.Locale;
import java.util.Optional;
import org.jspecify.annotations.Nullable;

/**
 * The compiled kernels of the TRTLLM experts, which their module does not hold but asks its host
 * for, one by one when first used, by path and SHA-256. They are read from where FlashInfer keeps
 * them; nothing is downloaded. Safe for several threads.
 */
final class Cubins {
  private static final String SET_CALLBACK = "FlashInferSetCubinCallback";
  private static final String SET_CURRENT = "FlashInferSetCurrentCubin";
  private static final int LONGEST_TEXT = 4096;
  private static final ThreadLocal<@Nullable String> FAILURE = new ThreadLocal<>();

  private final List<Path> folders;
  private final MethodHandle setCurrent;

  private Cubins(List<Path> folders, MethodHandle setCurrent) {
    this.folders = folders;
    this.setCurrent = setCurrent;
  }

  /** {@return the folders that are there, the preferred one first} */
  static List<Path> folders(FlashInferLibrary library, SearchPlaces places) {
    List<Path> found = new ArrayList<>();
    places.cubins().ifPresent(found::add);
    List<Path> sites = new ArrayList<>(places.sites());
    Path site = library.site();
    if (site != null) {
      sites.addFirst(site);
    }
    sites.forEach(s -> found.add(s.resolve("flashinfer_cubin").resolve("cubins")));
    places.cache().ifPresent(c -> found.add(c.resolve("cubins")));
    return found.stream().distinct().filter(Files::isDirectory).toList();
  }

  /**
   * Answers a module from now on, if it is one that asks.
   *
   * @param module loaded
   * @param folders where kernels lie
   */
  static void serve(NativeLibrary module, List<Path> folders) {
    Optional<MemorySegment> callback = module.find(SET_CALLBACK);
    Optional<MemorySegment> current = module.find(SET_CURRENT);
    if (callback.isEmpty() || current.isEmpty()) {
      return;
    }
    Linker linker = Linker.nativeLinker();
    FunctionDescriptor two = FunctionDescriptor.ofVoid(ValueLayout.ADDRESS, ValueLayout.ADDRESS);
    Cubins cubins =
        new Cubins(
            folders,
            linker.downcallHandle(
                current.get(),
                FunctionDescriptor.ofVoid(ValueLayout.ADDRESS, ValueLayout.JAVA_INT)));
    try {
      MethodHandle give =
          MethodHandles.lookup()
              .bind(
                  cubins,
                  "give",
                  MethodType.methodType(void.class, MemorySegment.class, MemorySegment.class));
      MemorySegment stub = linker.upcallStub(give, two, Arena.global());
      linker
          .downcallHandle(callback.get(), FunctionDescriptor.ofVoid(ValueLayout.ADDRESS))
          .invokeExact(stub);
    } catch (RuntimeException | Error e) {
      throw e;
    } catch (Throwable e) {
      throw new AssertionError("neither the look-up nor the call throws anything else", e);
    }
  }

  /** What the module calls. An exception that leaves an upcall ends the process. */
  @SuppressWarnings("UnusedMethod") // by its name, from native code
  private void give(MemorySegment path, MemorySegment sha256) {
    byte[] cubin = new byte[0];
    try {
      cubin = find(text(path), text(sha256));
    } catch (IOException | RuntimeException | Error e) {
      FAILURE.set(String.valueOf(e.getMessage()));
    }
    // Also without one: the module would take the kernel that it was given last.
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment bytes = arena.allocate(Math.max(1, cubin.length));
      MemorySegment.copy(cubin, 0, bytes, ValueLayout.JAVA_BYTE, 0, cubin.length);
      setCurrent.invokeExact(bytes, cubin.length);
    } catch (Throwable e) {
      FAILURE.set(String.valueOf(e.getMessage()));
    }
  }

  private static String text(MemorySegment at) {
    return at.reinterpret(LONGEST_TEXT).getString(0);
  }

  private byte[] find(String name, String sha256) throws IOException {
    String wrong = "";
    for (Path folder : folders) {
      Path file;
      try {
        file = folder.resolve(name).normalize();
      } catch (InvalidPathException e) {
        break;
      }
      if (!file.startsWith(folder) || !Files.isRegularFile(file)) {
        continue;
      }
      byte[] cubin = Files.readAllBytes(file);
      String has = sha256(cubin);
      if (sha256.isEmpty() || has.equals(sha256.toLowerCase(Locale.ROOT))) {
        return cubin;
      }
      wrong = ": " + file + " has SHA-256 " + has + ", not " + sha256;
    }
    throw new IOException(
        "the kernel "
            + name
            + " is not in "
            + folders
            + wrong
            + ": pip install flashinfer-cubin of FlashInfer's version");
  }

  private static String sha256(byte[] bytes) {
    try {
      return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(bytes));
    } catch (NoSuchAlgorithmException e) {
      throw new AssertionError("every Java has SHA-256", e);
    }
  }

  /** {@return why this thread's last calls got no kernel, null if they did; forgotten then} */
  static @Nullable String takeFailure() {
    String failure = FAILURE.get();
    FAILURE.remove();
    return failure;
  }
}
