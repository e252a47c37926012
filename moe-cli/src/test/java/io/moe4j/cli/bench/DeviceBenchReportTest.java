package io.moe4j.cli.bench;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.platform.DeviceInfo;
import java.util.List;
import org.junit.jupiter.api.Test;

class DeviceBenchReportTest {
  private static final DeviceBench.Lora LORA = new DeviceBench.Lora(16, 8);

  private static DeviceBenchReport.Row row(
      int tokens, DeviceBench.Lora lora, double micros, String path) {
    return new DeviceBenchReport.Row("tiny", tokens, lora, micros, 4.3e6, 1, 5.25, path);
  }

  private static final DeviceBenchReport REPORT =
      new DeviceBenchReport(
          DeviceInfo.cuda(0, "NVIDIA H200", 9, 0),
          BenchWeights.INT4,
          List.of(
              row(1, DeviceBench.Lora.NONE, 10, "marlin"),
              row(1, LORA, 11, "marlin"),
              row(64, DeviceBench.Lora.NONE, 21.2, "marlin")),
          0,
          null);

  @Test
  void oursOverTheirs() {
    DeviceBenchReport both =
        REPORT.beside(
            "triton bf16",
            List.of(row(1, DeviceBench.Lora.NONE, 20, "triton"), row(1, LORA, 10.4, "triton")));
    assertThat(both.markdown())
        .contains(
            "| tax | triton bf16 us | ours / theirs |",
            "| 1 | - | - | 10.0 | 1.0 | 10.00 | - | 20.0 | 0.50 |",
            "| 1 | 16 | 8 | 11.0 | 1.0 | 11.00 | 1.10 | 10.4 | 1.06 |",
            "| 64 | - | - | 21.2 | 1.0 | 21.20 | - | - | - |",
            "Over triton bf16: 0.727 in the geometric mean of 2 points; over 5% slower: tiny T=1 rank"
                + " 16 x 8 1.06\n");
    assertThat(both.json().path("beside").asText()).isEqualTo("triton bf16");
    assertThat(both.json().path("rows").path(0).path("beside_us").asDouble()).isEqualTo(20);
    assertThat(both.json().path("rows").path(2).has("beside_us")).isFalse();
    assertThat(both.json().path("rows").path(2).path("touched").asDouble()).isEqualTo(5.3);
    assertThat(REPORT.beside("x", List.of(row(1, DeviceBench.Lora.NONE, 9.6, "x"))).markdown())
        .contains("Over x: 1.042 in the geometric mean of 1 points; over 5% slower: none");
  }

  @Test
  void profiledPointsHaveAFloorAndNoTime() {
    DeviceBenchReport profiled =
        new DeviceBenchReport(
            DeviceInfo.cuda(0, "NVIDIA H200", 9, 0),
            BenchWeights.INT4,
            List.of(row(1, DeviceBench.Lora.NONE, Double.NaN, "marlin")),
            0,
            null);
    assertThat(profiled.markdown())
        .contains("| 1 | - | - | - | 1.0 | - | - |")
        .doesNotContain("NaN", "geometric mean");
    assertThat(profiled.json().path("rows").path(0).has("us")).isFalse();
    assertThat(profiled.json().path("rows").path(0).path("floor_us").asDouble()).isEqualTo(1);
  }

  @Test
  void aloneThereIsNothingToCompare() {
    assertThat(REPORT.markdown())
        .contains("| us / floor | tax |\n", "| 1 | - | - | 10.0 | 1.0 | 10.00 | - |\n")
        .doesNotContain("Over ");
    assertThat(REPORT.json().has("beside")).isFalse();
  }
}
