package io.moe4j.backend.marlin;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.QuantScheme.Format;
import io.moe4j.api.config.QuantScheme.ScaleFormat;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.tensor.DType;
import io.moe4j.cuda.KernelLibrary;
import io.moe4j.cuda.KernelManifestChecks;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;

/** The committed PTX. */
class KernelsTest {
  private static final long MOST_BYTES = 4_450_000;

  static List<QuantScheme> schemes() {
    List<QuantScheme> all = new ArrayList<>();
    for (Format f : List.of(Format.INT4, Format.INT8)) {
      for (int group : new int[] {0, 16, 32, 48, 64, 96, 128, 192, 1024}) {
        all.add(QuantScheme.builder(f).group(group).build());
        all.add(QuantScheme.builder(f).group(group).symmetric(false).build());
        if (group > 0) {
          all.add(QuantScheme.builder(f).group(group).symmetric(false).actOrder(true).build());
        }
      }
    }
    QuantScheme.Builder fp8 = QuantScheme.builder(Format.FP8);
    all.add(fp8.perTensor().build());
    all.add(fp8.perChannel().build());
    all.add(fp8.group(96).build());
    all.add(fp8.group(128).build());
    all.add(QuantScheme.FP8_BLOCK);
    all.add(QuantScheme.MXFP8);
    all.add(QuantScheme.MXFP4);
    all.add(QuantScheme.NVFP4);
    all.add(QuantScheme.builder(Format.FP4).group(64).scaleFormat(ScaleFormat.E8M0).build());
    all.add(QuantScheme.builder(Format.FP4).perChannel().build());
    return all;
  }

  @Test
  void manifestFitsSourcesAndPtx() {
    KernelManifestChecks.check(MarlinBackend.class, "backend-marlin", Path.of("").toAbsolutePath());
  }

  /** What the support check accepts has kernels on every card. */
  @Test
  void everySchemeHasKernels() {
    for (QuantScheme s : schemes()) {
      assertThat(PackedLayout.reasonAgainst(s)).as("%s", s).isEmpty();
      for (long in : new long[] {64, 100, 2880, 14336}) {
        String format = PackedLayout.of(s, 128, in).formatName();
        for (DType type : List.of(DType.BF16, DType.F16)) {
          assertThat(heights(8, MarlinKernels.NARROW, format, type))
              .as("%s: %s in %s", s, format, type)
              .containsExactly(16, 64);
          assertThat(heights(9, MarlinKernels.NARROW, format, type)).contains(8, 16, 64);
          assertThat(heights(9, MarlinKernels.WIDE, format, type)).contains(32, 64);
          assertThat(heights(10, MarlinKernels.WIDE, format, type)).isEmpty();
          assertThat(heights(12, MarlinKernels.NARROW, format, type)).contains(8, 16, 64);
        }
      }
    }
  }

  private static List<Integer> heights(int major, String kind, String format, DType type) {
    return MarlinKernels.heights(DeviceInfo.cuda(0, "a card", major, 0), kind, format, type);
  }

  /** A local variable in memory would be read and written in the loops. */
  @Test
  void nothingIsKeptInLocalMemory() {
    KernelLibrary library = MarlinKernels.library();
    library
        .kernels()
        .forEach(k ->
            assertThat(new String(library.ptx(k), java.nio.charset.StandardCharsets.US_ASCII))
                .as(k.id())
                .doesNotContain("__local_depot"));
  }

  @Test
  void ptxStaysSmall() {
    long bytes =
        MarlinKernels.library().kernels().stream()
            .map(k -> KernelLibrary.ROOT + "backend-marlin/" + k.ptx())
            .distinct()
            .mapToLong(KernelsTest::size)
            .sum();
    assertThat(bytes).isLessThan(MOST_BYTES);
  }

  private static long size(String resource) {
    try (var in = KernelsTest.class.getClassLoader().getResourceAsStream(resource)) {
      assertThat(in).as(resource).isNotNull();
      return in.readAllBytes().length;
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }
}
