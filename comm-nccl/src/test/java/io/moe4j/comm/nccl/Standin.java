package io.moe4j.comm.nccl;

import io.moe4j.cuda.CStandin;
import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.SymbolLookup;
import java.lang.foreign.ValueLayout;
import java.nio.file.Path;
import java.util.List;
import java.util.Optional;

/**
 * The stand-in for NCCL of {@code src/test/resources/standin}, compiled by the machine's C compiler
 * when first asked for. Tests that need it are skipped where there is no compiler.
 */
@SuppressWarnings("restricted") // calls the compiled stand-in
final class Standin {
  private static final CStandin STANDIN = new CStandin("NCCL");

  private Standin() {}

  static void assumeCompiler() {
    STANDIN.assumeCompiler();
  }

  /**
   * Compiles it, once for each folder.
   *
   * @param folder where it goes, under the build's output
   * @param options like {@code -DVERSION=22105}
   */
  static Path build(String folder, String... options) {
    return STANDIN.build(folder, NcclLibrary.FILE, "nccl.c", options);
  }

  /** The file that this process loads: one, as in real life. */
  static Path library() {
    return build("nccl");
  }

  /** What a process has of NCCL when the stand-in is all there is. */
  static NcclLibrary.Installed installed() {
    Path file = library();
    return new NcclLibrary.Installed(() -> new NcclPlaces(Optional.of(file), List.of(), List.of()));
  }

  static NcclCommProvider provider() {
    return new NcclCommProvider(installed());
  }

  static long ask(String what) {
    try (Arena arena = Arena.ofConfined()) {
      return (long)
          Linker.nativeLinker()
              .downcallHandle(
                  SymbolLookup.libraryLookup(library(), Arena.global())
                      .find("standin_ask")
                      .orElseThrow(),
                  FunctionDescriptor.of(ValueLayout.JAVA_LONG, ValueLayout.ADDRESS))
              .invokeExact(arena.allocateFrom(what));
    } catch (Throwable e) {
      throw new AssertionError(e);
    }
  }

  static void set(String what, long value) {
    try (Arena arena = Arena.ofConfined()) {
      Linker.nativeLinker()
          .downcallHandle(
              SymbolLookup.libraryLookup(library(), Arena.global())
                  .find("standin_set")
                  .orElseThrow(),
              FunctionDescriptor.ofVoid(ValueLayout.ADDRESS, ValueLayout.JAVA_LONG))
          .invokeExact(arena.allocateFrom(what), value);
    } catch (Throwable e) {
      throw new AssertionError(e);
    }
  }
}
