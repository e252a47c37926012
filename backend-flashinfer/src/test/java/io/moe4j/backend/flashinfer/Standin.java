package io.moe4j.backend.flashinfer;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.ConcurrentHashMap;

/**
 * The stand-in libraries of {@code src/test/resources/standin}, compiled by the machine's C
 * compiler when first asked for. Tests that need one are skipped where there is no compiler.
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
        "the stand-in for FlashInfer needs Linux and a C compiler (gcc, cc or clang) on the PATH");
  }

  /**
   * Compiles a library, once for each folder.
   *
   * @param folder where it goes, under the build's output
   * @param file its name
   * @param source of it
   * @param options like {@code -DRUN_MOE_ARGS=26}
   */
  static Path build(String folder, String file, String source, String... options) {
    assumeCompiler();
    return BUILT.computeIfAbsent(
        folder + "/" + file,
        _ -> {
          try {
            Path target = OUTPUT.resolve(folder).resolve(file);
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
            command.add(SOURCES.resolve(source).toString());
            command.addAll(List.of("-lm", "-ldl"));
            Process compiler = new ProcessBuilder(command).redirectErrorStream(true).start();
            String words = new String(compiler.getInputStream().readAllBytes());
            assertThat(compiler.waitFor()).as("%s: %s", command, words).isZero();
            return target;
          } catch (IOException e) {
            throw new UncheckedIOException(e);
          } catch (InterruptedException e) {
            throw new IllegalStateException(e);
          }
        });
  }

  /** The TVM-FFI of this process: as in real life there is one, for all tests. */
  static TvmRuntime runtime() {
    try {
      return TvmRuntime.load(tvm());
    } catch (UnavailableException e) {
      throw new AssertionError(e);
    }
  }

  static Path tvm() {
    return build("tvm", TvmRuntime.FILE, "tvm.c");
  }

  static Path moe() {
    return build("moe", "fused_moe_90.so", "moe.c");
  }

  static Path trtllm() {
    return build("trtllm", "fused_moe_trtllm_sm100.so", "trtllm.c");
  }

  /** The TRTLLM experts over the stand-in of today's FlashInfer. */
  static FlashInferTrtllmBackend trtllmBackend() {
    return new FlashInferTrtllmBackend(installed(trtllm(), "0.6.18"), _ -> new HostKernels());
  }

  /** The folder that kernels of the TRTLLM experts are taken from. */
  static Path cubins() {
    return SOURCES.resolve("cubins");
  }

  /** What a process has of FlashInfer when the stand-in is all there is. */
  static Installed installed(Path module, String version, Path... sites) {
    return new Installed(() ->
        new SearchPlaces(
            Optional.of(module),
            Optional.of(version),
            Optional.of(tvm()),
            List.of(sites),
            Optional.empty(),
            List.of(),
            Optional.of(cubins())));
  }

  /** The CUTLASS experts over the stand-in of today's FlashInfer. */
  static FlashInferCutlassBackend cutlass() {
    return new FlashInferCutlassBackend(installed(moe(), "0.6.18"), _ -> new HostKernels());
  }

  /** A module of the stand-in, with what it tells tests. */
  static final class Controls {
    private final NativeLibrary library;

    Controls(Path path) {
      TvmRuntime _ = runtime(); // whose symbols the modules need
      try {
        library = NativeLibrary.load(path);
      } catch (UnavailableException e) {
        throw new AssertionError(e);
      }
    }

    long ask(String symbol) {
      try {
        return (long)
            Linker.nativeLinker()
                .downcallHandle(
                    library.find(symbol).orElseThrow(),
                    FunctionDescriptor.of(ValueLayout.JAVA_LONG))
                .invokeExact();
      } catch (Throwable e) {
        throw new AssertionError(e);
      }
    }

    void failNext(String kind, String message) {
      try (Arena arena = Arena.ofConfined()) {
        MemorySegment k = arena.allocateFrom(kind);
        MemorySegment m = arena.allocateFrom(message);
        Linker.nativeLinker()
            .downcallHandle(
                library.find("standin_fail_next").orElseThrow(),
                FunctionDescriptor.ofVoid(ValueLayout.ADDRESS, ValueLayout.ADDRESS))
            .invokeExact(k, m);
      } catch (Throwable e) {
        throw new AssertionError(e);
      }
    }
  }

  /** {@return how many objects of TVM-FFI there are} */
  static long liveObjects() {
    return new Controls(tvm()).ask("standin_live");
  }
}
