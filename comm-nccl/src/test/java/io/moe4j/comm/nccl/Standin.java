package io.moe4j.comm.nccl;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.SymbolLookup;
import java.lang.foreign.ValueLayout;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.ConcurrentHashMap;

/**
 * The stand-in for NCCL of {@code src/test/resources/standin}, compiled by the machine's C compiler
 * when first asked for. Tests that need it are skipped where there is no compiler.
 */
@SuppressWarnings("restricted") // calls the compiled stand-in
final class Standin {
  private static final Path SOURCES = Path.of("src/test/resources/standin").toAbsolutePath();
  private static final Path OUTPUT = Path.of("target/standin").toAbsolutePath();
  private static final Map<String, Path> BUILT = new ConcurrentHashMap<>();
  private static final Optional<String> COMPILER = compiler();

  private Standin() {}

  private static Optional<String> compiler() {
    String path = System.getenv().getOrDefault("PATH", "");
    for (String name : List.of("gcc", "cc", "clang")) {
      for (String directory : path.split(":")) {
        if (Files.isExecutable(Path.of(directory.isEmpty() ? "." : directory, name))) {
          return Optional.of(name);
        }
      }
    }
    return Optional.empty();
  }

  static void assumeCompiler() {
    assumeTrue(
        COMPILER.isPresent() && System.getProperty("os.name", "").equals("Linux"),
        "the stand-in for NCCL needs Linux and a C compiler (gcc, cc or clang) on the PATH");
  }

  /**
   * Compiles it, once for each folder.
   *
   * @param folder where it goes, under the build's output
   * @param options like {@code -DVERSION=22105}
   */
  static Path build(String folder, String... options) {
    assumeCompiler();
    return BUILT.computeIfAbsent(
        folder,
        _ -> {
          try {
            Path target = OUTPUT.resolve(folder).resolve(NcclLibrary.FILE);
            Files.createDirectories(target.getParent());
            List<String> command =
                new ArrayList<>(
                    List.of(
                        COMPILER.orElseThrow(),
                        "-std=gnu11",
                        "-shared",
                        "-fPIC",
                        "-O2",
                        "-fvisibility=hidden",
                        "-o",
                        target.toString()));
            command.addAll(List.of(options));
            command.addAll(List.of(SOURCES.resolve("nccl.c").toString(), "-lpthread"));
            Process compiler = new ProcessBuilder(command).redirectErrorStream(true).start();
            String words =
                new String(compiler.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
            assertThat(compiler.waitFor()).as("%s: %s", command, words).isZero();
            return target;
          } catch (IOException e) {
            throw new UncheckedIOException(e);
          } catch (InterruptedException e) {
            throw new IllegalStateException(e);
          }
        });
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
