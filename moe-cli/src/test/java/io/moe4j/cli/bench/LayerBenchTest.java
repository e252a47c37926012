package io.moe4j.cli.bench;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;

class LayerBenchTest {
  /** On a machine with a GPU the oracle would take it, and be compared with the host's limits. */
  @Test
  void onlyTheHostIsThere() {
    DeviceInfo cpu = DeviceInfo.of(DeviceId.CPU, "a processor");
    DeviceInfo gpu = DeviceInfo.of(new DeviceId(DeviceType.CUDA, 0), "a card");
    DeviceType npu = new DeviceType("npu");
    Platform host =
        LayerBench.host(new Platform(List.of(gpu, cpu), Map.of(npu, "libnpu.so is missing")));
    assertThat(host.devices()).containsExactly(cpu);
    assertThat(host.absent()).containsOnlyKeys(DeviceType.CUDA, npu);
    assertThat(host.whyAbsent(DeviceType.CUDA)).contains("--device cuda measures a GPU");
    assertThat(host.whyAbsent(npu)).contains("libnpu.so is missing");
  }
}
