package io.moe4j.backend.flashinfer;

import io.moe4j.cuda.KernelManifestChecks;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;

/** The committed PTX. */
class KernelsTest {
  @Test
  void manifestFitsSourcesAndPtx() {
    KernelManifestChecks.check(
        CardKernels.class, "backend-flashinfer-cuda", Path.of("").toAbsolutePath());
  }
}
