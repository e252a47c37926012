package io.moe4j.oracle;

import static io.moe4j.oracle.LayerFixture.E;
import static io.moe4j.oracle.LayerFixture.H;
import static io.moe4j.oracle.LayerFixture.K;
import static io.moe4j.oracle.LayerFixture.config;
import static io.moe4j.oracle.LayerFixture.empty;
import static io.moe4j.oracle.LayerFixture.hidden;
import static io.moe4j.oracle.LayerFixture.layer;
import static io.moe4j.oracle.LayerFixture.lora;
import static io.moe4j.oracle.LayerFixture.loraConfig;
import static io.moe4j.oracle.LayerFixture.zeros;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.List;
import org.junit.jupiter.api.Test;

/** What a layer refuses, in which words; and that nothing has run when it does. */
class MoeLayerDoorTest {
  private final FakeDevice device = new FakeDevice();
  private final MoeLayer layer = layer(device, lora(device), loraConfig().build());
  private final Tensor x = hidden(2);
  private final Tensor y = zeros(2, H);

  private void refuses(MoeForward f, String message) {
    device.events.clear();
    assertThatThrownBy(() -> layer.forward(f))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining(message);
    assertThat(device.events).isEmpty();
  }

  private static Tensor ints(int... values) {
    return Tensor.ofInts(values, values.length / K, K);
  }

  @Test
  void hiddenOfAnotherShapeOrDtype() {
    refuses(MoeForward.of(zeros(2, 5), y), "hidden is F32[2, 5], must be F32[T, 4]");
    refuses(MoeForward.of(zeros(8), y), "hidden is F32[8], must be F32[T, 4]");
    refuses(MoeForward.of(empty(DType.BF16, 2, H), y), "hidden is BF16[2, 4], must be F32[T, 4]");
    refuses(
        MoeForward.of(zeros(2, 2 * H).narrow(1, 0, H), y),
        "hidden is F32[2, 4] strides [8, 1], must be contiguous");
  }

  @Test
  void outputOfAnotherShapeOrDtype() {
    refuses(MoeForward.of(x, zeros(3, H)), "output is F32[3, 4], must be F32[2, 4]");
    refuses(
        MoeForward.of(x, empty(DType.I32, 2, H)),
        "output is I32[2, 4], its dtype must be one of [F32, BF16, F16]");
    refuses(
        MoeForward.of(x, zeros(2, 2 * H).narrow(1, 0, H)),
        "output is F32[2, 4] strides [8, 1], must be contiguous");
  }

  @Test
  void overlappingTensors() {
    refuses(MoeForward.of(x, x), "output overlaps hidden, they must be apart");
    Tensor both = zeros(3, H);
    refuses(MoeForward.of(both.narrow(0, 0, 2), both.narrow(0, 1, 2)), "output overlaps hidden");
    layer.forward(both.narrow(0, 0, 1), both.narrow(0, 1, 1)); // neighbours are apart
    Tensor ids = empty(DType.I32, 2, K);
    Tensor alias = Tensor.of(DType.F32, ids.memory(), 2, K);
    refuses(MoeForward.of(x, y).topkInto(ids, alias), "topkIdsOut overlaps topkWeightsOut");
    Tensor native1 = Tensor.of(DType.F32, Arena.ofAuto().allocate(64), 2, H);
    refuses(MoeForward.of(native1, native1), "output overlaps hidden");
    layer.forward(native1, y);
  }

  @Test
  void readOnlyOutput() {
    Tensor output =
        Tensor.of(DType.F32, MemorySegment.ofArray(new float[2 * H]).asReadOnly(), 2, H);
    refuses(MoeForward.of(x, output), "output is F32[2, 4] in read-only memory");
    layer.forward(
        Tensor.of(DType.F32, MemorySegment.ofArray(new float[2 * H]).asReadOnly(), 2, H), y);
  }

  @Test
  void memoryThatABackendsThreadsCannotUse() {
    Arena arena = Arena.ofConfined();
    Tensor confined = Tensor.of(DType.F32, arena.allocate(2 * H * Float.BYTES), 2, H);
    refuses(
        MoeForward.of(confined, y),
        "hidden is F32[2, 4] in memory of a confined arena, which a backend's threads cannot use");
    refuses(MoeForward.of(x, confined), "output is F32[2, 4] in memory of a confined arena");
    arena.close();
    refuses(MoeForward.of(confined, y), "hidden is F32[2, 4] in memory of a closed arena");
  }

  @Test
  void memoryOfAnotherDevice() {
    DeviceId gpu = new DeviceId(DeviceType.CUDA, 1);
    Tensor there = Tensor.of(DType.F32, new DeviceMemory(gpu, 4096, 2 * H * 4), 2, H);
    refuses(MoeForward.of(there, y), "hidden is in memory of cuda:1, must be in host memory");
    refuses(MoeForward.of(x, there), "output is in memory of cuda:1, must be in host memory");
  }

  @Test
  void idsOutOfRange() {
    Tensor w = zeros(2, K);
    refuses(MoeForward.of(x, y).withTopk(ints(0, 1, E, 0), w), "topkIds[1, 0] is 4, must be -1..3");
    refuses(
        MoeForward.of(x, y).withTopk(ints(0, -2, 0, 0), w), "topkIds[0, 1] is -2, must be -1..3");
    layer.forward(MoeForward.of(x, y).withTopk(ints(0, -1, 3, 0), w));
  }

  @Test
  void routingOfAnotherShapeOrDtype() {
    refuses(
        MoeForward.of(x, y).withTopk(zeros(2, K), zeros(2, K)),
        "topkIds is F32[2, 2], must be I32[2, 2]");
    refuses(
        MoeForward.of(x, y).withTopk(ints(0, 1, 2, 3), zeros(2, 3)),
        "topkWeights is F32[2, 3], must be F32[2, 2]");
    refuses(
        MoeForward.of(x, y).withRouterLogits(zeros(2, 3)),
        "routerLogits is F32[2, 3], must be F32[2, 4]");
    refuses(
        MoeForward.of(x, y).topkInto(ints(0, 1), zeros(1, K)),
        "topkIdsOut is I32[1, 2], must be I32[2, 2]");
    refuses(
        MoeForward.of(x, y).logitsInto(empty(DType.BF16, 2, E)),
        "logitsOut is BF16[2, 4], must be F32[2, 4]");
  }

  @Test
  void requestsThatContradictThemselves() {
    Tensor ids = ints(0, 1, 2, 3);
    Tensor w = zeros(2, K);
    assertThatThrownBy(() -> MoeForward.of(x, y).withTopk(ids, w).logitsInto(zeros(2, E)))
        .hasMessageContaining("nothing is routed");
    assertThatThrownBy(
            () -> MoeForward.of(x, y).withRouterLogits(zeros(2, E)).logitsInto(zeros(2, E)))
        .hasMessageContaining("the router does not run");
  }

  @Test
  void adaptersOnALayerBuiltWithout() {
    try (MoeLayer base = layer(device, lora(device), config().build())) {
      assertThatThrownBy(() -> base.forward(MoeForward.of(x, y).withLora(FakeLora.of(1, 0, 0))))
          .isInstanceOf(IllegalArgumentException.class)
          .hasMessageContaining("built with LoRA off; set MoeConfig.lora");
    }
  }

  @Test
  void slotsOutOfRange() {
    refuses(
        MoeForward.of(x, y).withLora(FakeLora.of(2, 0, 2)),
        "lora.tokenLoraMapping[1] is 2, must be -1..1");
    refuses(
        MoeForward.of(x, y).withLora(FakeLora.of(2, -2, 0)),
        "lora.tokenLoraMapping[0] is -2, must be -1..1");
    refuses(
        MoeForward.of(x, y).withLora(FakeLora.of(4, 0, 0)),
        "lora has 4 slots, the layer was built for 3");
    refuses(
        MoeForward.of(x, y).withLora(FakeLora.of(3, 0, 0, 0)),
        "lora.tokenLoraMapping is I32[3], must be I32[2]");
  }

  @Test
  void factorsThatDoNotFitTheLayer() {
    Tensor mapping = Tensor.ofInts(new int[] {0, 1}, 2);
    LoraLayer fits = FakeLora.up(2, H, LayerFixture.I);
    LoraLayer wide = FakeLora.up(2, H + 1, LayerFixture.I);
    LoraLayer high = FakeLora.up(9, H, LayerFixture.I);
    layer.forward(MoeForward.of(x, y).withLora(new FakeLora(List.of(fits, fits), mapping, true)));
    refuses(
        MoeForward.of(x, y).withLora(new FakeLora(List.of(fits, wide), mapping, true)),
        "lora slot 1: UP factors are");
    refuses(
        MoeForward.of(x, y).withLora(new FakeLora(List.of(fits, high), mapping, true)),
        "lora slot 1: UP factors have rank 9, the layer's maxRank is 8");
    // Refused once is not remembered as fitting.
    refuses(
        MoeForward.of(x, y).withLora(new FakeLora(List.of(fits, high), mapping, true)),
        "lora slot 1: UP factors have rank 9");
  }

  @Test
  void idsOnADeviceAreNotReadByTheHost() {
    FakeDevice gpu = new FakeDevice(new DeviceId(DeviceType.CUDA, 0));
    try (MoeLayer onGpu = layer(gpu, lora(gpu), config().build())) {
      DeviceId id = gpu.info().id();
      Tensor in = Tensor.of(DType.F32, new DeviceMemory(id, 1 << 12, 64), 2, H);
      Tensor out = Tensor.of(DType.F32, new DeviceMemory(id, 1 << 13, 64), 2, H);
      Tensor ids = Tensor.of(DType.I32, new DeviceMemory(id, 1 << 14, 64), 2, K);
      Tensor w = Tensor.of(DType.F32, new DeviceMemory(id, 1 << 15, 64), 2, K);
      onGpu.forward(MoeForward.of(in, out).withTopk(ids, w));
      assertThat(gpu.events).contains("apply F32[2, 4] -> F32[2, 4] on default");
      assertThatThrownBy(() -> onGpu.forward(x, y))
          .hasMessage("hidden is in host memory, must be in memory of cuda:0");
      assertThatThrownBy(() -> onGpu.forward(in, in)).hasMessageContaining("overlaps hidden");
    }
  }
}
