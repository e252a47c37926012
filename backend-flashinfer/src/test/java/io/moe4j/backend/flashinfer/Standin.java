package io.moe4j.backend.flashinfer;

import io.moe4j.cuda.CStandin;
import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.file.Path;
import java.util.List;
import java.util.Optional;

/**
 * The stand-in libraries of {@code src/test/resources/standin}, compiled by the machine's C
 * compiler when first asked for. Tests that need one are skipped where there is no compiler.
 */
@SuppressWarnings("restricted") // calls the compiled stand-in
final class Standin {
  private static final CStandin STANDIN = new CStandin("FlashInfer");

  private Standin() {}

  static void assumeCompiler() {
    STANDIN.assumeCompiler();
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
    return STANDIN.build(folder, file, source, options);
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
    return STANDIN.sources().resolve("cubins");
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
