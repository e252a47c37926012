package io.moe4j.backend.triton;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.cuda.KernelLibrary;
import io.moe4j.cuda.KernelManifestChecks;
import io.moe4j.cuda.KernelSpec;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.regex.Pattern;
import org.junit.jupiter.api.Test;

/** The committed PTX. */
class KernelsTest {
  /** {@code wgmma} whose first operand after the accumulators is a list of registers. */
  private static final Pattern REGISTER_OPERAND =
      Pattern.compile("wgmma\\.mma_async[^;{]*\\{[^}]*\\}\\s*,\\s*\\{");

  private static final long MOST_BYTES = 10L << 20;

  @Test
  void manifestFitsSourcesAndPtx() {
    Path module = Path.of("").toAbsolutePath();
    KernelManifestChecks.check(TritonBackend.class, "backend-triton", module);
    KernelManifestChecks.check(TritonBackend.class, "backend-triton-cuda", module);
  }

  /**
   * An operand that a loop computes in registers may still be read by the last iteration's {@code
   * wgmma} while the next one overwrites it: the compiler leaves them in flight. So there must be
   * none; see gemm.py.
   */
  @Test
  void noMatrixInstructionReadsRegisters() {
    KernelLibrary library = TritonKernels.library();
    int seen = 0;
    for (KernelSpec k : library.kernels()) {
      String ptx = new String(library.ptx(k), StandardCharsets.US_ASCII);
      assertThat(REGISTER_OPERAND.matcher(ptx).find()).as(k.id()).isFalse();
      seen += ptx.contains("wgmma.mma_async") ? 1 : 0;
    }
    assertThat(seen).as("kernels with wgmma").isGreaterThan(20);
  }

  @Test
  void theCheckFindsARegisterOperand() {
    assertThat(
            REGISTER_OPERAND
                .matcher(
                    "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%r1,%r2}, {%r3,%r4}, %rd1, p, 1, 1, 0;")
                .find())
        .isTrue();
    assertThat(
            REGISTER_OPERAND
                .matcher(
                    "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%r1,%r2}, %rd1, %rd2, p, 1, 1, 0, 0;")
                .find())
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
