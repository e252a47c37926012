package io.moe4j.backend.flashinfer;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.DeviceException;
import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.spi.ModularExperts;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.util.Map;
import java.util.Random;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

/** Forwards that come again, on a device that records what is enqueued. */
class ReplaysTest {
  private static final MoeConfig CONFIG = Layers.config(32, 16, 6, 2).build();

  private final HostCuda device = new HostCuda(9, 0).recording();

  @BeforeEach
  void noTunedTactics() {
    Standin.assumeCompiler();
    System.setProperty(FlashInferProperties.TACTICS, "off");
  }

  @AfterEach
  void giveBack() {
    System.clearProperty(FlashInferProperties.TACTICS);
    System.clearProperty(FlashInferProperties.REPLAYS);
    assertThat(device.taken()).as("bytes nobody gave back").isZero();
    assertThat(device.graphs()).as("graphs nobody closed").isZero();
  }

  /** Buffers of a caller, whose contents change from call to call. */
  private final class Buffers implements AutoCloseable {
    private final DeviceTensors tensors = new DeviceTensors(device);
    private final Tensor hidden;
    private final Tensor ids;
    private final Tensor weights;
    private final Tensor output;
    private final Workspace workspace;

    Buffers(ModularExperts experts, int tokens, DType outputType) {
      hidden = tensors.allocate(DType.BF16, tokens, CONFIG.hiddenSize());
      ids = tensors.allocate(DType.I32, tokens, CONFIG.topK());
      weights = tensors.allocate(DType.F32, tokens, CONFIG.topK());
      output = tensors.allocate(outputType, tokens, CONFIG.hiddenSize());
      workspace =
          new Workspace(tensors.allocate(DType.U8, experts.workspaceBytes(tokens)).memory());
    }

    Buffers fill(long seed) {
      Random random = new Random(seed);
      long tokens = hidden.size(0);
      tensors.copy(Layers.random(random, 0.7, DType.BF16, hidden.shape()), hidden);
      Tensor chosen = Layers.empty(DType.I32, ids.shape());
      for (long t = 0; t < tokens; t++) {
        int first = random.nextInt(CONFIG.numExperts());
        chosen.set(first, t, 0);
        chosen.set((first + 1) % CONFIG.numExperts(), t, 1);
      }
      tensors.copy(chosen, ids);
      tensors.copy(Layers.random(random, 1, DType.F32, weights.shape()), weights);
      return this;
    }

    double[] run(ModularExperts experts, long stream) {
      experts.apply(
          ExpertsInputs.standard(hidden, new ExpertRouting(ids, weights, null), output),
          null,
          workspace,
          device.stream(stream));
      return HostCuda.onHost(output).toDoubles();
    }

    @Override
    public void close() {
      tensors.close();
    }
  }

  private CutlassExperts prepare() {
    return (CutlassExperts)
        Standin.cutlass().prepare(CONFIG, Layers.plain(CONFIG, 3, GateUpLayout.HALVES), device);
  }

  @Test
  void whatComesTheThirdTimeIsReplayedWithWhatIsInTheBuffersThen() {
    System.setProperty(FlashInferProperties.REPLAYS, "0");
    CutlassExperts called = prepare();
    System.clearProperty(FlashInferProperties.REPLAYS);
    try (called;
        CutlassExperts experts = prepare();
        Buffers others = new Buffers(called, 3, DType.F32);
        Buffers kept = new Buffers(experts, 3, DType.F32)) {
      for (int call = 1; call <= 6; call++) {
        double[] expected = others.fill(call).run(called, 0x51);
        assertThat(kept.fill(call).run(experts, 0x51 + call))
            .as("call %d", call)
            .isEqualTo(expected);
        assertThat(device.replays()).isEqualTo(Math.max(0, call - Replays.TIMES + 1));
      }
      assertThat(experts.recorded()).isEqualTo(1);
    }
  }

  @Test
  void whateverDiffersIsAForwardOfItsOwn() {
    try (CutlassExperts experts = prepare();
        Buffers some = new Buffers(experts, 3, DType.BF16);
        Buffers others = new Buffers(experts, 3, DType.BF16);
        Buffers fewer = new Buffers(experts, 2, DType.BF16);
        Buffers wide = new Buffers(experts, 3, DType.F32)) {
      for (int call = 1; call <= Replays.TIMES; call++) {
        for (Buffers b : new Buffers[] {some, others, fewer, wide}) {
          b.fill(call).run(experts, 0x51);
        }
      }
      assertThat(experts.recorded()).isEqualTo(4);
      assertThat(device.replays()).isEqualTo(4);
    }
  }

  @Test
  void theOnesUsedLastAreKept() {
    System.setProperty(FlashInferProperties.REPLAYS, "2");
    try (CutlassExperts experts = prepare();
        Buffers a = new Buffers(experts, 1, DType.BF16);
        Buffers b = new Buffers(experts, 2, DType.BF16);
        Buffers c = new Buffers(experts, 3, DType.BF16)) {
      for (Buffers each : new Buffers[] {a, b, c}) {
        for (int call = 1; call <= Replays.TIMES; call++) {
          each.fill(call).run(experts, 0x51);
        }
      }
      assertThat(device.graphs()).isEqualTo(2);
      int replays = device.replays();
      c.fill(9).run(experts, 0x51);
      b.fill(9).run(experts, 0x51);
      assertThat(device.replays()).isEqualTo(replays + 2);
      a.fill(9).run(experts, 0x51);
      assertThat(device.replays()).as("it was dropped").isEqualTo(replays + 2);
      assertThat(device.graphs()).isEqualTo(1);
    }
  }

  @Test
  void aStreamThatRecordsIsLeftToItsOwner() {
    try (CutlassExperts experts = prepare();
        Buffers b = new Buffers(experts, 3, DType.BF16)) {
      for (int call = 1; call <= 5; call++) {
        b.fill(call).run(experts, HostKernels.RECORDING);
      }
      assertThat(device.replays()).isZero();
      assertThat(experts.recorded()).isZero();
      assertThat(new Standin.Controls(Standin.moe()).ask("standin_last_stream"))
          .isEqualTo(HostKernels.RECORDING);
    }
  }

  @Test
  void aDeviceThatCannotRecordIsAskedOnce() {
    device.failCaptures();
    try (CutlassExperts experts = prepare();
        Buffers b = new Buffers(experts, 3, DType.BF16)) {
      double[] first = b.fill(1).run(experts, 0x51);
      for (int call = 1; call <= 5; call++) {
        assertThat(b.fill(1).run(experts, 0x51)).isEqualTo(first);
      }
      assertThat(device.captures()).isEqualTo(1);
    }
  }

  @Test
  void anErrorOfAForwardIsSaidAndRecordsNothing() {
    try (CutlassExperts experts = prepare();
        Buffers b = new Buffers(experts, 3, DType.BF16)) {
      Standin.Controls module = new Standin.Controls(Standin.moe());
      for (int call = 1; call <= 5; call++) {
        module.failNext("RuntimeError", "an error of the card");
        assertThatThrownBy(() -> b.fill(1).run(experts, 0x51))
            .isInstanceOf(DeviceException.class)
            .hasMessageContaining("an error of the card");
      }
      assertThat(device.captures()).isZero();
    }
  }

  @Test
  void nothingIsRecordedWhereThatIsTurnedOff() {
    System.setProperty(FlashInferProperties.REPLAYS, "0");
    try (CutlassExperts experts = prepare();
        Buffers b = new Buffers(experts, 3, DType.BF16)) {
      for (int call = 1; call <= 5; call++) {
        b.fill(call).run(experts, 0x51);
      }
      assertThat(device.captures()).isZero();
    }
  }

  @Test
  void theSetting() {
    try {
      System.clearProperty(FlashInferProperties.REPLAYS);
      assertThat(FlashInferProperties.read().defaults()).isEqualTo(FlashInferOptions.DEFAULT);
      for (Map.Entry<String, Integer> given :
          Map.of(" ", FlashInferOptions.REPLAYS, "0", 0, " 7 ", 7).entrySet()) {
        System.setProperty(FlashInferProperties.REPLAYS, given.getKey());
        assertThat(FlashInferProperties.read().defaults())
            .isEqualTo(FlashInferOptions.DEFAULT.withReplays(given.getValue()));
      }
      for (String bad : new String[] {"-1", "many", "1.5"}) {
        System.setProperty(FlashInferProperties.REPLAYS, bad);
        assertThat(FlashInferProperties.read().fault())
            .isEqualTo(
                "-D%s is \"%s\", accepted: whole numbers from 0 on"
                    .formatted(FlashInferProperties.REPLAYS, bad));
      }
    } finally {
      System.clearProperty(FlashInferProperties.REPLAYS);
    }
    assertThatThrownBy(() -> FlashInferOptions.DEFAULT.withReplays(-1))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessage("replays is -1, must not be negative");
  }
}
