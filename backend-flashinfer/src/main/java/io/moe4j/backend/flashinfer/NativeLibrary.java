package io.moe4j.backend.flashinfer;

import io.moe4j.backend.flashinfer.ffi.Dlfcn;
import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.file.Path;
import java.util.Optional;

/**
 * A shared library, loaded by {@code dlopen} itself: {@link System#load} and {@link
 * java.lang.foreign.SymbolLookup} keep a library's symbols to themselves, but FlashInfer's modules
 * name no dependency on {@code libtvm_ffi.so} and expect its symbols to be there for everybody.
 * Stays loaded until the process ends unless {@link #unload} is called.
 */
final class NativeLibrary {
  private final Path path;
  private final MemorySegment handle;

  private NativeLibrary(Path path, MemorySegment handle) {
    this.path = path;
    this.handle = handle;
  }

  /** Loads a library for whoever asks it; its symbols serve no other library. */
  static NativeLibrary load(Path path) throws UnavailableException {
    return open(path, Dlfcn.RTLD_NOW() | Dlfcn.RTLD_LOCAL());
  }

  /** Loads a library whose symbols serve all libraries that are loaded later. */
  static NativeLibrary loadForAll(Path path) throws UnavailableException {
    return open(path, Dlfcn.RTLD_NOW() | Dlfcn.RTLD_GLOBAL());
  }

  /**
   * Whether a library can be loaded; loads it to find out, and leaves it loaded. Functions are
   * bound when first called, as TVM-FFI itself loads modules.
   */
  static NativeLibrary tryOut(Path path) throws UnavailableException {
    return open(path, Dlfcn.RTLD_LAZY() | Dlfcn.RTLD_LOCAL());
  }

  private static NativeLibrary open(Path path, int mode) throws UnavailableException {
    try (Arena arena = Arena.ofConfined()) {
      // Linking dlerror looks up symbols, which would wipe out what it is to tell: so before.
      Dlfcn.dlerror();
      MemorySegment handle = Dlfcn.dlopen(arena.allocateFrom(path.toString()), mode);
      if (handle.address() == 0) {
        MemorySegment why = Dlfcn.dlerror();
        throw new UnavailableException(
            why.address() == 0 ? path + " could not be loaded" : why.getString(0));
      }
      return new NativeLibrary(path, handle);
    }
  }

  Path path() {
    return path;
  }

  /** {@return the address of a symbol of this library or of those it depends on} */
  Optional<MemorySegment> find(String symbol) {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment address = Dlfcn.dlsym(handle, arena.allocateFrom(symbol));
      return address.address() == 0 ? Optional.empty() : Optional.of(address);
    }
  }

  /**
   * Calls a function of the library that takes one pointer and answers nothing.
   *
   * @param symbol its name
   * @param argument what it takes
   */
  void call(String symbol, MemorySegment argument) throws UnavailableException {
    MemorySegment address =
        find(symbol).orElseThrow(() -> new UnavailableException(path + " lacks " + symbol));
    try {
      Linker.nativeLinker()
          .downcallHandle(address, FunctionDescriptor.ofVoid(ValueLayout.ADDRESS))
          .invokeExact(argument);
    } catch (RuntimeException | Error e) {
      throw e;
    } catch (Throwable e) {
      throw new AssertionError("a downcall throws nothing of its own", e);
    }
  }

  /** Gives this load back; the library goes when nobody else has loaded it. */
  void unload() {
    Dlfcn.dlclose(handle);
  }
}
