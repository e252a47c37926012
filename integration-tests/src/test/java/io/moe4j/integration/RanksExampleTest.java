package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.device.Device;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.backend.cpu.CpuDeviceProvider;
import io.moe4j.oracle.BackendCatalog;
import io.moe4j.oracle.MoeLayer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import org.junit.jupiter.api.Test;

/** The example of README.md compiles and, as one process, computes what was recorded. */
class RanksExampleTest {
  @Test
  void theExampleIsTheOneThatIsCompiled() throws Exception {
    String source =
        Files.readString(
            Path.of("src", "test", "java", "io", "moe4j", "integration", "RanksExample.java"));
    String example =
        source.substring(source.indexOf("// <example>\n") + 13, source.indexOf("  // </example>"));
    List<String> lines =
        Arrays.stream(example.stripTrailing().split("\n", -1)).map(l -> l.substring(2)).toList();
    assertThat(Files.readString(Path.of("..", "README.md")))
        .contains("```java\n" + String.join("\n", lines) + "\n```");
  }

  @Test
  void oneProcessIsAGroupOfOne() {
    try (Fixture fixture = Fixture.open("fixtures/mixtral");
        BackendCatalog catalog = BackendCatalog.discover();
        Device device = new CpuDeviceProvider().open(0);
        MoeLayer layer = RanksExample.rank(fixture.checkpoint, 0, catalog, device)) {
      Tensor hidden = fixture.io.tensor("layers.0.input");
      float[] output = new float[Math.toIntExact(hidden.elementCount())];
      layer.forward(hidden, Tensor.ofFloats(output, hidden.shape()));
      LayerCheck check = LayerCheck.exact(fixture, 0, "the example");
      double[] wide = new double[output.length];
      Arrays.setAll(wide, i -> output[i]);
      check.close("output.base", wide, check.golden("output.base").toDoubles());
    }
  }
}
