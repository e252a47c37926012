package io.moe4j.backend.cpu.kernel;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import io.moe4j.api.config.Activation;
import io.moe4j.api.tensor.DType;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.Test;

/**
 * HotSpot's compilers must take every kernel. One that they refuse (too many values at once for
 * the first compiler) stays interpreted and a thousand times slower, gives right results, and no
 * other test would notice.
 */
class KernelCompilationTest {
  private static final int CALLS = 400;

  @Test
  void noKernelIsGivenUpOn() throws Exception {
    assumeTrue(KernelSelection.kernels().lanes() > 1, "needs jdk.incubator.vector");
    Process process =
        new ProcessBuilder(
                Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "--add-modules=jdk.incubator.vector",
                "-XX:+PrintCompilation",
                "-Xbatch",
                "-cp",
                System.getProperty("java.class.path"),
                Main.class.getName())
            .redirectErrorStream(true)
            .start();
    String output = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
    assertThat(process.waitFor()).as(output).isZero();
    List<String> kernels =
        output.lines().filter(l -> l.contains("io.moe4j.backend.cpu.kernel.")).toList();
    assertThat(kernels).noneMatch(l -> l.contains("COMPILE SKIPPED"));
    int most = KernelSelection.kernels().panelVectors();
    for (String name :
        List.of(
            "::dot4x1 ",
            "::dot4x6 ",
            "::four1 ",
            "::four2 ",
            "::oneVector ",
            "::rows6x" + most + " ",
            "::rows12x1 ",
            "::siluMul ")) {
      assertThat(kernels).as("compilations of " + name).anyMatch(l -> l.contains(name));
    }
  }

  /** Runs in the child: every kernel until it is compiled. */
  static final class Main {
    public static void main(String[] args) {
      Kernels kernels = KernelSelection.kernels();
      int lanes = kernels.lanes();
      int k = 256;
      MemorySegment memory = Arena.ofAuto().allocate(1 << 20, 64);
      MemorySegment out = Arena.ofAuto().allocate(1 << 16, 64);
      float[] w = new float[Kernels.PANEL_ROWS * Kernels.PANEL_STRIDE];
      float[] c = new float[Kernels.PANEL_ROWS * 64];
      float[] scratch = new float[TypedKernels.DOT_SCRATCH];
      long[] at = new long[TypedKernels.MAX_TOKENS];
      for (int call = 0; call < CALLS; call++) {
        for (DType dtype : List.of(DType.F32, DType.BF16, DType.F16)) {
          TypedKernels typed = kernels.forType(dtype);
          int e = dtype.bits() / 8;
          for (int t = 1; t <= TypedKernels.MAX_TOKENS; t++) {
            typed.dot(memory, 0, 4L * k, 5, memory, at, t, k, out, 0, 64, scratch);
          }
          typed.widen(memory, 0, w, 0, k);
          typed.axpy(1f, memory, 0, out, 0, k);
          ExpandKernel expand = kernels.expandOf(dtype, memory);
          for (int rank : new int[] {lanes, 2 * lanes, 5}) {
            expand.expand(memory, 0, 4L * rank, e, 64, rank, memory, 0, 64, out, at, 1, false);
            expand.expand(memory, 0, e, 4L * k, k, rank, memory, 0, 64, out, at, 3, true);
          }
        }
        for (int v = 1; v <= kernels.panelVectors(); v *= 2) {
          kernels.panel(w, 0, memory, 0, v, k, c, 0);
        }
        kernels.rows(w, 0, 4, scratch, 4, k, out, 0, 64, false);
        kernels.transpose(w, 0, 64, out, 0, 4L * lanes, lanes, lanes);
        kernels.transpose(memory, 0, 256, scratch, out, 0, 4L * lanes, 0, 6, lanes);
        kernels.transpose(memory, 0, 256, scratch, out, 0, 4L * lanes, 6, 12, 1);
        for (Activation.Kind kind : Activation.Kind.values()) {
          kernels.activate(Activation.plain(kind), memory, 0, memory, 0, out, 0, k);
        }
      }
    }

    private Main() {}
  }
}
