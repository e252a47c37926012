package io.moe4j.backend.triton;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.cuda.KernelLibrary;
import io.moe4j.cuda.KernelManifestChecks;
import io.moe4j.cuda.KernelSpec;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;

/** The committed PTX. */
class KernelsTest {
  private static final long MOST_BYTES = 10L << 20;

  @Test
  void manifestFitsSourcesAndPtx() {
    Path module = Path.of("").toAbsolutePath();
    KernelManifestChecks.check(TritonBackend.class, "backend-triton", module);
    KernelManifestChecks.check(TritonBackend.class, "backend-triton-cuda", module);
  }

  @Test
  void noMatrixInstructionReadsRegisters() {
    assertThat(KernelManifestChecks.checkMatrixOperands(TritonKernels.library()))
        .as("kernels with wgmma")
        .isGreaterThan(20);
  }

  @Test
  void theCheckFindsARegisterOperand() {
    assertThat(
            KernelManifestChecks.readsRegisters(
                "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%r1,%r2}, {%r3,%r4}, %rd1, p, 1, 1, 0;"))
        .isTrue();
    assertThat(
            KernelManifestChecks.readsRegisters(
                "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%r1,%r2}, %rd1, %rd2, p, 1, 1, 0, 0;"))
        .isFalse();
  }

  @Test
  void ptxStaysSmall() {
    KernelLibrary library = TritonKernels.library();
    assertThat(library.kernels().stream().map(KernelSpec::ptx).distinct().count())
        .isEqualTo(library.kernels().size());
    long bytes =
        library.kernels().stream()
            .mapToLong(k -> size("META-INF/moe4j/kernels/backend-triton/" + k.ptx()))
            .sum();
    assertThat(bytes).isLessThan(MOST_BYTES);
  }

  private static long size(String resource) {
    try (var in = KernelsTest.class.getClassLoader().getResourceAsStream(resource)) {
      assertThat(in).as(resource).isNotNull();
      return in.readAllBytes().length;
    } catch (java.io.IOException e) {
      throw new java.io.UncheckedIOException(e);
    }
  }
}
