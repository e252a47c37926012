package io.moe4j.lora;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.DeviceException;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.DType;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.SplittableRandom;
import org.junit.jupiter.api.Test;

/** Uploads to a device that is not the host. */
class DeviceRegistryTest {
  private static final MoeConfig CONFIG =
      MoeConfig.builder(6, 4, 3, 1).lora(new LoraConfig(2, 8)).build();

  @Test
  void factorsArriveDenseInOneBufferALayer() {
    SplittableRandom rng = new SplittableRandom(1);
    FakeDevice device = new FakeDevice();
    AdapterRegistry r =
        AdapterRegistry.builder(Map.of(0, CONFIG, 2, CONFIG))
            .device(device)
            .punicaWrapper(CpuPunicaWrapper.shared())
            .build();
    LoraFactors up = TestTensors.factors(rng, DType.BF16, 3, 5, 6, 4);
    LoraFactors gate = new LoraFactors(up.a(), TestTensors.random(rng, DType.F32, 3, 4, 5));
    LoraFactors down =
        new LoraFactors(
            TestTensors.random(rng, DType.F16, 2, 4).expand(3),
            TestTensors.random(rng, DType.F32, 6, 2, 3).transpose(0, 2).transpose(1, 2));
    LoraLayer both =
        new LoraLayer(Map.of(LoraTarget.UP, up, LoraTarget.GATE, gate, LoraTarget.DOWN, down));
    r.load(new LoraAdapter("x", Map.of(0, both, 2, new LoraLayer(Map.of(LoraTarget.UP, up)))));
    assertThat(device.memory).as("nothing before it is used").isEmpty();
    AdapterBatch batch = r.batch(java.util.Arrays.asList("x", null, "x"));
    assertThat(device.allocations.get()).as("two layers and the mapping").isEqualTo(3);
    assertThat(device.read(batch.context(2).tokenLoraMapping()).toInts()).containsExactly(0, -1, 0);
    LoraLayer there = Objects.requireNonNull(batch.context(0).slot(0));
    assertThat(there.factors().keySet()).isEqualTo(both.factors().keySet());
    both.factors()
        .forEach((target, f) -> {
          LoraFactors g = Objects.requireNonNull(there.get(target));
          assertThat(device.read(g.a()).toDoubles()).isEqualTo(f.a().toDoubles());
          assertThat(device.read(g.b()).toDoubles()).isEqualTo(f.b().toDoubles());
          assertThat(g.b().isContiguous()).isTrue();
          assertThat(g.a().byteOffset() % 64).isZero();
          assertThat(g.b().byteOffset() % 64).isZero();
        });
    LoraFactors g = Objects.requireNonNull(there.get(LoraTarget.GATE));
    LoraFactors u = Objects.requireNonNull(there.get(LoraTarget.UP));
    LoraFactors d = Objects.requireNonNull(there.get(LoraTarget.DOWN));
    assertThat(g.a().deviceAddress()).as("one A for both").isEqualTo(u.a().deviceAddress());
    assertThat(d.a().stride(0)).as("one A for all experts").isZero();
    assertThat(d.a().memory()).isEqualTo(u.b().memory());

    batch.release();
    assertThat(device.memory).as("stays in its slot").hasSize(3);
    r.unload("x");
    assertThat(device.memory).as("only the mapping is left").hasSize(1);
    batch.close();
    assertThat(device.memory).isEmpty();
  }

  private static AdapterRegistry registry(FakeDevice device) {
    return AdapterRegistry.builder(Map.of(0, CONFIG))
        .device(device)
        .punicaWrapper(CpuPunicaWrapper.shared())
        .build();
  }

  @Test
  void aBatchThatCannotBeMadeLeavesNothing() {
    FakeDevice device = new FakeDevice();
    AdapterRegistry r = registry(device);
    for (int i = 0; i < 3; i++) {
      assertThatThrownBy(() -> r.batch(List.of("who"))).hasMessageContaining("not loaded");
      assertThatThrownBy(() -> r.batch(7)).hasMessageContaining("handle");
    }
    assertThat(device.memory).isEmpty();
    r.close();
  }

  /** The tokens of the batch before it: their mapping was given back to make room. */
  @Test
  void aMappingThatCouldNotGrowIsMadeAnew() {
    FakeDevice device = new FakeDevice();
    AdapterRegistry r = registry(device);
    AdapterBatch batch = r.newBatch();
    batch.reset(new int[] {-1, -1}, 2);
    device.failAfter.set(0);
    int[] many = new int[1000];
    java.util.Arrays.fill(many, -1);
    assertThatThrownBy(() -> batch.reset(many, many.length)).isInstanceOf(DeviceException.class);
    batch.reset(new int[] {-1, -1}, 2);
    assertThat(device.read(batch.context(0).tokenLoraMapping()).toInts()).containsExactly(-1, -1);
    batch.close();
    assertThat(device.memory).isEmpty();
    r.close();
  }

  @Test
  void aDeviceOutOfMemoryLeavesNothingLeased() {
    FakeDevice device = new FakeDevice();
    AdapterRegistry r =
        AdapterRegistry.builder(Map.of(0, CONFIG, 2, CONFIG))
            .device(device)
            .punicaWrapper(CpuPunicaWrapper.shared())
            .build();
    LoraLayer layer =
        new LoraLayer(
            Map.of(
                LoraTarget.UP,
                TestTensors.factors(new SplittableRandom(2), DType.F32, 3, 2, 6, 4)));
    r.load(new LoraAdapter("x", Map.of(0, layer, 2, layer)));
    AdapterBatch batch = r.newBatch();
    batch.reset(java.util.Arrays.asList(null, null));
    device.failAfter.set(1);
    assertThatExceptionOfType(DeviceException.class)
        .isThrownBy(() -> batch.reset(List.of("x", "x")));
    assertThat(device.memory).as("the first layer's buffer was given back").hasSize(1);
    assertThat(r.stats().leasedSlots()).isZero();
    device.failAfter.set(Integer.MAX_VALUE);
    batch.reset(List.of("x", "x"));
    assertThat(Objects.requireNonNull(batch.context(0).slot(batch.slot(0))).factors()).hasSize(1);
    batch.close();
    r.close();
    assertThat(device.memory).isEmpty();
  }

  @Test
  void aDeviceNeedsItsOwnPunicaWrapper() {
    assertThatIllegalArgumentException()
        .isThrownBy(
            () -> AdapterRegistry.builder(Map.of(0, CONFIG)).device(new FakeDevice()).build())
        .withMessageContaining("cuda:0 needs a punicaWrapper");
  }
}
