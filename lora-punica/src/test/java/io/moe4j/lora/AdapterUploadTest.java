package io.moe4j.lora;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;
import static org.assertj.core.api.Assertions.assertThatIllegalStateException;

import io.moe4j.api.AdapterException;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.tensor.DType;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.SplittableRandom;
import org.junit.jupiter.api.Test;

/** What a registry enqueues on a device, in which order, and who waits for whom. */
class AdapterUploadTest {
  private static final MoeConfig CONFIG =
      MoeConfig.builder(6, 4, 3, 1).lora(new LoraConfig(1, 8)).build();

  /** Up and down of a layer, f32: 3 x (2 x 6 + 4 x 2) and 3 x (1 x 4 + 6 x 1) elements. */
  private static final long BYTES = 192 + 128 + 64 + 128;

  private final SplittableRandom rng = new SplittableRandom(7);
  private final RecordingDevice device = new RecordingDevice();
  private final AdapterRegistry registry =
      AdapterRegistry.builder(Map.of(0, CONFIG, 2, CONFIG))
          .device(device)
          .punicaWrapper(CpuPunicaWrapper.shared())
          .build();

  private LoraLayer layer() {
    return new LoraLayer(
        Map.of(
            LoraTarget.UP,
            TestTensors.factors(rng, DType.F32, 3, 2, 6, 4),
            LoraTarget.DOWN,
            TestTensors.factors(rng, DType.F32, 3, 1, 4, 6)));
  }

  private LoraAdapter adapter(String name) {
    return new LoraAdapter(name, Map.of(0, layer(), 2, layer()));
  }

  @Test
  void oneCopyAnAdapterAndLayerBesideEverythingElse() {
    LoraAdapter x = adapter("x");
    registry.load(x);
    assertThat(device.log).as("loading touches no stream").isEmpty();
    AdapterBatch batch = registry.batch(List.of("x", "x"));
    assertThat(device.log)
        .containsExactly(
            "s1: copy " + BYTES,
            "s1: fence f1",
            "s1: copy " + BYTES,
            "s1: fence f2",
            "s1: fence f3",
            "s2: copy 2",
            "s2: synchronize");
    device.log.clear();
    batch.reset(List.of("x"));
    assertThat(device.log).as("it is there").containsExactly("s2: copy 1", "s2: synchronize");
    for (int ordinal = 0; ordinal < 2; ordinal++) {
      LoraLayer there = Objects.requireNonNull(batch.context(2 * ordinal).slot(0));
      LoraLayer host = x.layer(2 * ordinal);
      for (LoraTarget t : host.factors().keySet()) {
        assertThat(device.read(Objects.requireNonNull(there.get(t)).b()).toFloats())
            .isEqualTo(Objects.requireNonNull(host.get(t)).b().toFloats());
      }
    }
    batch.close();
    registry.close();
    assertThat(device.hostBuffers).hasValue(0);
    assertThat(device.memory).isEmpty();
  }

  @Test
  void aForwardWaitsForItsLayerOnTheDeviceOnly() {
    registry.load(adapter("x"));
    AdapterBatch batch = registry.newBatch();
    RecordingDevice.Stream uploads = device.stream("s1");
    uploads.hold();
    batch.reset(List.of("x", "x"));
    RecordingDevice.Stream forward = device.newStream();
    device.log.clear();
    batch.context(2).awaitFactors(forward);
    assertThat(device.log).as("the second layer's copy").containsExactly("s3: wait f2");
    batch.context(0).awaitFactors(forward);
    assertThat(device.log).containsExactly("s3: wait f2", "s3: wait f1");
    assertThat(forward.isIdle()).isFalse();
    uploads.go();
    assertThat(forward.isIdle()).isTrue();
    device.log.clear();
    batch.context(0).awaitFactors(forward);
    batch
        .context(2)
        .withTokenLoraMapping(batch.context(2).tokenLoraMapping())
        .awaitFactors(forward);
    assertThat(device.log).as("it has arrived").isEmpty();
    batch.close();
    registry.close();
  }

  @Test
  void anotherAdapterInTheSlotOfARunningForward() {
    LoraAdapter x = adapter("x");
    registry.load(x);
    registry.load(adapter("y"));
    RecordingDevice.Stream first = device.newStream();
    RecordingDevice.Stream second = device.newStream();
    AdapterBatch one = registry.batch(List.of("x"));
    AdapterBatch two = registry.newBatch();
    LoraFactors used = up(one.context(0));
    List<Float> seen = new ArrayList<>();
    first.hold();
    first.enqueue(() -> seen.add((float) device.read(used.a()).get(2, 1, 5)));
    one.release(first); // f4 and f5: of the mapping, of the slot
    two.reset(List.of("y"));
    assertThat(up(two.context(0)).a().deviceAddress())
        .as("memory of its own")
        .isNotEqualTo(used.a().deviceAddress());
    assertThat(device.stream("s1").isIdle()).as("the upload runs beside the forward").isTrue();
    device.log.clear();
    two.context(0).awaitFactors(second);
    assertThat(device.log)
        .as("what is kept of the slot may be written over once the forward is done")
        .containsExactly("s4: wait f5");
    registry.unload("x");
    assertThat(seen).isEmpty();
    first.go();
    assertThat(seen)
        .containsExactly(
            (float) Objects.requireNonNull(x.layer(0).get(LoraTarget.UP)).a().get(2, 1, 5));
    assertThat(second.isIdle()).isTrue();
    two.release(second);
    assertThat(device.memory).as("two layers of y, two mappings").hasSize(4);
    assertThat(device.hostBuffers).as("y, and two mappings").hasValue(3);
    one.close();
    two.close();
    registry.close();
    assertThat(device.memory).isEmpty();
    assertThat(device.hostBuffers).hasValue(0);
  }

  @Test
  void resettingABatchWaitsUntilItsSlotsWereRead() {
    registry.load(adapter("x"));
    RecordingDevice.Stream forward = device.newStream();
    AdapterBatch batch = registry.batch(List.of("x"));
    forward.hold();
    batch.release(forward);
    device.log.clear();
    assertThatIllegalStateException()
        .as("nobody lets the forward go on here")
        .isThrownBy(() -> batch.reset(Arrays.asList(null, "x")));
    assertThat(device.log).containsExactly("s2: wait f4", "s2: copy 2", "s2: synchronize");
    forward.go();
    batch.reset(Arrays.asList(null, "x"));
    assertThat(device.read(batch.context(0).tokenLoraMapping()).toInts()).containsExactly(-1, 0);
    batch.close();
    registry.close();
    assertThat(device.memory).isEmpty();
  }

  @Test
  void hostMemoryStaysUntilItHasBeenCopied() {
    registry.load(adapter("x"));
    RecordingDevice.Stream uploads = device.stream("s1");
    uploads.hold();
    registry.batch(List.of("x")).close();
    registry.unload("x");
    assertThat(device.hostBuffers).as("still being copied").hasValue(1);
    uploads.go();
    registry.load(adapter("y"));
    assertThat(device.hostBuffers).as("y alone").hasValue(1);
    assertThat(device.memory).isEmpty();
    registry.close();
    assertThat(device.hostBuffers).hasValue(0);
  }

  @Test
  void whereMemoryIsShortAnUploadWaitsForWhatLeaves() {
    registry.load(adapter("x"));
    registry.load(adapter("y"));
    RecordingDevice.Stream forward = device.newStream();
    AdapterBatch one = registry.batch(List.of("x"));
    AdapterBatch two = registry.newBatch();
    two.reset(Collections.singletonList(null));
    forward.hold();
    one.release(forward); // f4 and f5
    device.log.clear();
    device.failAfter.set(1);
    two.reset(List.of("y"));
    assertThat(device.log)
        .as("the second layer does not fit before x is gone")
        .startsWith(
            "s1: copy " + BYTES,
            "s1: fence f6",
            "s1: wait f5",
            "s1: copy " + BYTES,
            "s1: fence f7",
            "s1: copy " + BYTES,
            "s1: fence f8");
    forward.go();
    assertThat(device.memory).as("two layers, two mappings").hasSize(4);
    two.close();
    one.close();
    registry.close();
    assertThat(device.memory).isEmpty();
  }

  @Test
  void anAdapterThatIsRefusedLeavesNothingBehind() {
    registry.load(adapter("x"));
    assertThatExceptionOfType(AdapterException.class).isThrownBy(() -> registry.load(adapter("x")));
    assertThatExceptionOfType(AdapterException.class)
        .isThrownBy(() -> registry.replace(adapter("z")));
    assertThat(device.hostBuffers).hasValue(1);
    registry.close();
    assertThat(device.hostBuffers).hasValue(0);
  }

  private static LoraFactors up(MoeLoraContext context) {
    return Objects.requireNonNull(Objects.requireNonNull(context.slot(0)).get(LoraTarget.UP));
  }
}
