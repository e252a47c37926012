package io.moe4j.backend.cpu;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.DeviceException;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceProvider;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.MemorySegment;
import java.util.ServiceLoader;
import org.junit.jupiter.api.Test;

class CpuDeviceTest {
  private final Device device = new CpuDeviceProvider().open(0);

  @Test
  void isFoundAndDescribesItself() {
    DeviceProvider provider =
        ServiceLoader.load(DeviceProvider.class).stream()
            .map(ServiceLoader.Provider::get)
            .filter(p -> p.type().equals(DeviceType.CPU))
            .findFirst()
            .orElseThrow();
    var info = provider.probe().devices().getFirst();
    assertThat(info.id()).isEqualTo(DeviceId.CPU);
    assertThat(info.name()).isNotBlank();
    assertThat(info.memoryBytes()).isPositive();
    assertThat(info.properties())
        .containsEntry("cores", Integer.toString(Runtime.getRuntime().availableProcessors()))
        .containsKeys("arch", "vector-bits");
    assertThat(device.info()).isEqualTo(info);
  }

  @Test
  void onlyOrdinalZeroExists() {
    assertThatThrownBy(() -> new CpuDeviceProvider().open(1))
        .isInstanceOf(DeviceException.class)
        .hasMessageContaining("cpu:1")
        .hasMessageContaining("cpu:0");
  }

  @Test
  void memoryIsAlignedAndGoesWithItsBuffer() {
    Device.Buffer buffer = device.allocate(100);
    MemorySegment segment = ((HostMemory) buffer.memory()).segment();
    assertThat(segment.byteSize()).isEqualTo(100);
    assertThat(segment.address() % 64).isZero();
    buffer.close();
    buffer.close();
    assertThat(segment.scope().isAlive()).isFalse();
    try (Device.Buffer empty = device.allocate(0)) {
      assertThat(empty.memory().byteSize()).isZero();
    }
  }

  @Test
  void largeMemoryIsZeroedAlignedAndGoesWithItsBuffer() {
    long bytes = (8 << 20) + 4;
    Device.Buffer buffer = device.allocate(bytes);
    MemorySegment segment = ((HostMemory) buffer.memory()).segment();
    assertThat(segment.byteSize()).isEqualTo(bytes);
    assertThat(segment.address() % 64).isZero();
    assertThat(segment.mismatch(MemorySegment.ofArray(new byte[(int) bytes]))).isEqualTo(-1);
    segment.fill((byte) 1);
    buffer.close();
    buffer.close();
    assertThat(segment.scope().isAlive()).isFalse();
  }

  @Test
  void negativeAndHugeSizesAreRefused() {
    assertThatThrownBy(() -> device.allocate(-1)).isInstanceOf(IllegalArgumentException.class);
    assertThatThrownBy(() -> device.allocate(1L << 60)).isInstanceOf(DeviceException.class);
    assertThatThrownBy(() -> device.allocate(Long.MAX_VALUE)).isInstanceOf(DeviceException.class);
  }

  @Test
  void copiesAndRefusesWhatDiffers() {
    Tensor from = Tensor.ofInts(new int[] {1, 2, 3, 4}, 2, 2);
    int[] target = new int[4];
    device.copy(from, Tensor.ofInts(target, 2, 2), DeviceStream.HOST);
    assertThat(target).containsExactly(1, 2, 3, 4);
    Tensor other = Tensor.of(DType.I32, MemorySegment.ofArray(target), 4);
    assertThatThrownBy(() -> device.copy(from, other, DeviceStream.HOST))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("I32[2, 2]")
        .hasMessageContaining("I32[4]");
  }
}
