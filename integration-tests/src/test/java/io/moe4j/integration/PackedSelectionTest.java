package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.tensor.DType;
import io.moe4j.backend.marlin.MarlinBackend;
import io.moe4j.backend.triton.TritonBackend;
import io.moe4j.backend.triton.options.TritonOptions;
import io.moe4j.cuda.CudaDeviceProvider;
import io.moe4j.cuda.ops.CudaBlockOpsProvider;
import io.moe4j.oracle.BackendCatalog;
import io.moe4j.oracle.MoeOracle;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.TestFactory;

/** Who gets the checkpoints that are quantised, on a machine with a card; none is needed. */
class PackedSelectionTest {
  private static final Platform H200 = Platform.of(DeviceInfo.cuda(0, "NVIDIA H200", 9, 0));

  @TestFactory
  Stream<DynamicTest> everyQuantisedModelIsForMarlin() {
    List<String> names = Fixture.names().stream().filter(n -> n.startsWith("quantised/")).toList();
    assertThat(names).hasSizeGreaterThanOrEqualTo(15);
    return names.stream().map(n -> DynamicTest.dynamicTest(n, () -> check(n)));
  }

  private static void check(String name) {
    try (Fixture fixture = Fixture.open(name);
        MoeOracle oracle =
            MoeOracle.of(
                BackendCatalog.of(
                    List.of(new TritonBackend(), new MarlinBackend()),
                    List.of(new CudaDeviceProvider()),
                    List.of(new CudaBlockOpsProvider())))) {
      for (int index : fixture.checkpoint.layers()) {
        MoeConfig config =
            fixture.config(index).toBuilder()
                .inputDtype(DType.BF16)
                .weightDtype(DType.BF16)
                .build();
        if (config.uniformScheme().isEmpty()) {
          // An expert of one model was left plain: nobody keeps that beside packed ones.
          assertThat(oracle.evaluate(config, H200).explain())
              .contains("w2 weights are of several kinds")
              .contains("let triton unpack it to BF16 when it is prepared")
              .doesNotContain("backend-marlin computes it packed");
          MoeConfig unpacked =
              config.toBuilder().options(TritonOptions.DEFAULT.withUnpackedWeights(true)).build();
          assertThat(oracle.select(unpacked, H200).chosenBackend().name()).isEqualTo("triton");
          continue;
        }
        assertThat(oracle.select(config, H200).chosenBackend().name()).isEqualTo("marlin");
      }
    }
  }
}
