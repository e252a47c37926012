package io.moe4j.oracle;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.mockito.Mockito.mock;
import static org.mockito.Mockito.when;

import io.moe4j.api.MoeException;
import io.moe4j.api.device.DeviceProvider;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import java.util.List;
import org.junit.jupiter.api.Test;

/** The machine as the device providers tell it. */
class CatalogTest {
  private static DeviceProvider provider(DeviceType type) {
    DeviceProvider p = mock(DeviceProvider.class);
    when(p.type()).thenReturn(type);
    return p;
  }

  @Test
  void platformHoldsDevicesAndWhyOthersAreAbsent() {
    DeviceProvider cuda = provider(DeviceType.CUDA);
    when(cuda.probe()).thenReturn(new DeviceProvider.Probe(List.of(), "no libcuda.so.1"));
    DeviceProvider rocm = provider(DeviceType.ROCM);
    when(rocm.probe()).thenThrow(new UnsatisfiedLinkError("no amdhip64"));
    DeviceProvider xpu = provider(DeviceType.XPU);
    try (BackendCatalog catalog =
        BackendCatalog.of(
            List.of(Zoo.cpuBackend(), Zoo.onlyOn("tpu", DeviceType.TPU)),
            List.of(new FakeDevice().provider(), cuda, rocm, xpu),
            List.of())) {
      Platform p = catalog.detectPlatform();
      assertThat(p.devices()).hasSize(1);
      assertThat(p.device(DeviceType.CPU)).isPresent();
      assertThat(p.absent()).containsEntry(DeviceType.CUDA, "no libcuda.so.1");
      assertThat(p.absent().get(DeviceType.ROCM))
          .contains("java.lang.UnsatisfiedLinkError: no amdhip64");
      assertThat(p.absent().get(DeviceType.XPU)).contains("probe() is null");
      assertThat(p.absent().get(DeviceType.TPU)).contains("opens tpu devices: add");
    }
  }

  @Test
  void twoProvidersOfOneTypeAreAnErrorNamingBoth() {
    List<DeviceProvider> two = List.of(new FakeDevice().provider(), new FakeDevice().provider());
    assertThatThrownBy(() -> BackendCatalog.of(List.of(), two, List.of()))
        .isInstanceOf(MoeException.class)
        .hasMessageContaining("two device providers open cpu devices");
  }

  @Test
  void twoBackendsOfOneName() {
    assertThatThrownBy(() -> Zoo.oracle(Zoo.cpuBackend(), Zoo.cpuBackend()))
        .isInstanceOf(MoeException.class)
        .hasMessageContaining("two backends are named \"cpu\"");
  }

  @Test
  void deviceOfAnotherTypeThanTheBackends() {
    try (BackendCatalog catalog = BackendCatalog.of(List.of(Zoo.triton()), List.of(), List.of())) {
      FoundBackend triton = catalog.backend("triton").orElseThrow();
      assertThatThrownBy(() -> catalog.openDevice(triton, DeviceId.CPU))
          .isInstanceOf(IllegalArgumentException.class)
          .hasMessage("device is cpu:0, backend triton computes on cuda");
    }
  }
}
