package io.moe4j.lora;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.tensor.Tensor;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;

/** A JVM that was started without the incubator module must run, slower. */
class NoVectorModuleTest {
  @Test
  void plainLoopsTakeOver() throws Exception {
    Process process =
        new ProcessBuilder(
                Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "-cp",
                System.getProperty("java.class.path"),
                Main.class.getName())
            .redirectErrorStream(true)
            .start();
    String output = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
    assertThat(process.waitFor()).as(output).isZero();
    assertThat(output)
        .contains("ScalarKernels")
        .contains("--add-modules jdk.incubator.vector")
        .contains("[14.0, 28.0]");
  }

  /** Runs in the child. */
  static final class Main {
    public static void main(String[] args) {
      LoraLayer layer =
          new LoraLayer(
              Map.of(
                  LoraTarget.SHARED_UP,
                  new LoraFactors(
                      Tensor.ofFloats(new float[] {1, 2, 3}, 1, 1, 3),
                      Tensor.ofFloats(new float[] {1, 2}, 1, 2, 1))));
      Tensor y = Tensor.ofFloats(new float[2], 1, 2);
      CpuPunicaWrapper.shared()
          .addLoraLinear(
              PunicaWrapper.Linear.of(
                  new TestContext(List.of(layer), Tensor.ofInts(new int[1], 1)),
                  LoraTarget.SHARED_UP,
                  y,
                  Tensor.ofFloats(new float[] {1, 2, 3}, 1, 3)),
              DeviceStream.HOST);
      System.out.println(FloatKernels.best().getClass().getSimpleName());
      System.out.println(java.util.Arrays.toString(y.toFloats()));
    }

    private Main() {}
  }
}
