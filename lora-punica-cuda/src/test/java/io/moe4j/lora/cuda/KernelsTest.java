package io.moe4j.lora.cuda;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.cuda.KernelManifestChecks;
import io.moe4j.cuda.KernelSpec;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;

/** The committed PTX. */
class KernelsTest {
  @Test
  void manifestFitsSourcesAndPtx() {
    KernelManifestChecks.check(
        CudaPunicaWrapper.class, "lora-punica-cuda", Path.of("").toAbsolutePath());
  }

  /** Whatever a plan can ask for is there, for the oldest cards and with clusters. */
  @Test
  void everyVariantIsThere() {
    for (String arch : new String[] {"sm_80", "sm_90"}) {
      for (String x : new String[] {"bf16", "f16"}) {
        for (String rows : new String[] {"16", "32"}) {
          assertThat(count(arch, "one_shot", x, rows)).isEqualTo(6);
          assertThat(count(arch, "shrink", x, rows)).isEqualTo(2);
          assertThat(count(arch, "expand", x, rows)).isEqualTo(2);
        }
        assertThat(count(arch, "one_shot", x, "64")).isEqualTo(6);
      }
    }
  }

  private static long count(String arch, String name, String x, String rows) {
    return LoraKernels.library().kernels().stream()
        .filter(k -> k.arch().toString().equals(arch) && k.name().equals(name))
        .filter(k -> k.constant("x").equals(x) && k.constant("rows").equals(rows))
        .map(KernelSpec::constants)
        .distinct()
        .count();
  }
}
