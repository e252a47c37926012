package io.moe4j.cuda;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.DeviceException;
import io.moe4j.api.device.DeviceProvider;
import io.moe4j.api.platform.DeviceType;
import java.util.ServiceLoader;
import org.junit.jupiter.api.Test;

class CudaDeviceProviderTest {
  @Test
  void isFoundAndAnswersOnAnyMachine() {
    DeviceProvider provider =
        ServiceLoader.load(DeviceProvider.class).stream()
            .filter(p -> p.type() == CudaDeviceProvider.class)
            .findFirst()
            .orElseThrow()
            .get();
    assertThat(provider.type()).isEqualTo(DeviceType.CUDA);
    DeviceProvider.Probe probe = provider.probe();
    assertThat(probe.absent().isEmpty())
        .as("a reason exactly where there is no device: %s", probe)
        .isEqualTo(!probe.devices().isEmpty());
    assertThat(provider.probe()).isSameAs(probe);
  }

  @Test
  void openingWhatIsNotThereSaysWhy() {
    CudaDeviceProvider provider = new CudaDeviceProvider();
    DeviceProvider.Probe probe = provider.probe();
    assertThatThrownBy(() -> provider.open(99))
        .isInstanceOf(DeviceException.class)
        .hasMessageContaining("cuda:99")
        .hasMessageContaining(probe.devices().isEmpty() ? probe.absent() : "this machine has");
  }

  @Test
  @GpuTest
  void describesTheCard() {
    var card = new CudaDeviceProvider().probe().devices().getFirst();
    assertThat(card.name()).isNotBlank();
    assertThat(card.memoryBytes()).isGreaterThan(1L << 30);
    assertThat(card.capability()).isPresent();
    assertThat(card.properties())
        .containsKeys("driver", "ptx-isa", "multiprocessors", "l2-bytes", "shared-bytes-per-block");
    assertThat(CudaDeviceProvider.ptxIsa(card).major()).isGreaterThanOrEqualTo(8);
  }
}
