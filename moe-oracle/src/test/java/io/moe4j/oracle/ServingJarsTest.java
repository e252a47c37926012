package io.moe4j.oracle;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.Support;
import io.moe4j.api.tensor.DType;
import java.util.List;
import org.junit.jupiter.api.Test;

/** What a table says where a GPU is there and the jar for it is not. */
class ServingJarsTest {
  private static final Platform GPU =
      Platform.of(Platform.cpuOnly().devices().getFirst(), DeviceInfo.cuda(0, "NVIDIA L4", 8, 9));
  private static final String MARLIN = "backend-marlin, which is not on the class path";
  private static final String TRITON = "backend-triton, which is not on the class path";

  private static MoeConfig.Builder config() {
    return MoeConfig.builder(256, 128, 8, 2).inputDtype(DType.BF16).weightDtype(DType.BF16);
  }

  private static String explain(MoeConfig config, Platform platform, FakeBackend... backends) {
    try (MoeOracle oracle =
        MoeOracle.of(BackendCatalog.of(List.of(backends), List.of(), List.of()))) {
      return oracle.evaluate(config, platform).explain();
    }
  }

  private static FakeBackend cpu() {
    return new FakeBackend("cpu", DeviceType.CPU);
  }

  private static FakeBackend refusing(String name) {
    return new FakeBackend(name, DeviceType.CUDA)
        .support((c, p) -> Support.no(Support.Code.SIZE, "not today"));
  }

  @Test
  void theJarIsNamed() {
    MoeConfig int4 = config().quantScheme(QuantScheme.int4(128)).build();
    assertThat(explain(int4, GPU, cpu())).contains(MARLIN).doesNotContain(TRITON);
    assertThat(explain(int4, GPU, cpu(), refusing("triton"))).contains(MARLIN);
    assertThat(explain(config().build(), GPU, cpu())).contains(TRITON).doesNotContain(MARLIN);
    assertThat(explain(config().quantScheme(QuantScheme.MXFP4).build(), GPU, cpu()))
        .contains(MARLIN, TRITON);
    MoeConfig two =
        config()
            .quantSchemes(List.of(QuantScheme.int4(128)), List.of(QuantScheme.int8(64)))
            .build();
    assertThat(explain(two, GPU, cpu())).contains(MARLIN);
  }

  @Test
  void nothingIsSaidWhereItWouldNotHelp() {
    MoeConfig int4 = config().quantScheme(QuantScheme.int4(128)).build();
    assertThat(explain(int4, Platform.cpuOnly(), cpu())).doesNotContain("class path");
    // It is there, and says itself why not.
    assertThat(explain(int4, GPU, cpu(), refusing("marlin"))).doesNotContain("class path");
    assertThat(explain(int4, GPU, cpu(), new FakeBackend("other", DeviceType.CUDA)))
        .doesNotContain("class path");
    MoeConfig plainExperts =
        config().quantSchemes(List.of(QuantScheme.int4(128), QuantScheme.NONE)).build();
    assertThat(explain(plainExperts, GPU, cpu())).doesNotContain("class path");
  }
}
