package io.moe4j.api.spi;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;
import static org.assertj.core.api.Assertions.assertThatNullPointerException;

import io.moe4j.api.device.Workspace;
import io.moe4j.api.platform.ComputeCapability;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;

class SupportTest {
  @Test
  void everyReasonIsKept() {
    Support support =
        Support.checks()
            .require(true, Support.Code.DTYPE, () -> "never evaluated")
            .require(false, Support.Code.CAPABILITY, () -> "compute capability 7.5 < 8.0")
            .require(false, Support.Code.SIZE, () -> "hidden size 100 is not a multiple of 64")
            .result();
    assertThat(support.isSupported()).isFalse();
    assertThat(support.reasons())
        .extracting(Support.Reason::code)
        .containsExactly(Support.Code.CAPABILITY, Support.Code.SIZE);
    assertThat(support)
        .hasToString("compute capability 7.5 < 8.0; hidden size 100 is not a multiple of 64");
    assertThat(Support.checks().result()).isEqualTo(Support.yes());
    assertThatIllegalArgumentException().isThrownBy(() -> new Support.No(List.of()));
    for (String blank : List.of("", " \n")) {
      assertThatIllegalArgumentException()
          .isThrownBy(() -> Support.no(Support.Code.SIZE, blank))
          .withMessageContaining("message of reason SIZE is blank");
    }
  }

  @Test
  @SuppressWarnings("NullAway") // what a stranger's code may do
  void aReasonHasACodeAndAMessage() {
    assertThatNullPointerException()
        .isThrownBy(() -> Support.no(Support.Code.SIZE, null))
        .withMessage("message");
    assertThatNullPointerException().isThrownBy(() -> Support.no(null, "x")).withMessage("code");
  }

  @Test
  void platformsSayWhyADeviceIsMissing() {
    Platform p =
        new Platform(
            Platform.cpuOnly().devices(), Map.of(DeviceType.CUDA, "libcuda.so.1 was not found"));
    assertThat(p.whyAbsent(DeviceType.CUDA))
        .isEqualTo("no cuda device (libcuda.so.1 was not found); this machine has cpu:0");
    assertThat(p.whyAbsent(DeviceType.TPU)).isEqualTo("no tpu device; this machine has cpu:0");
    Platform gpu = Platform.of(DeviceInfo.cuda(0, "NVIDIA H200", 9, 0));
    assertThat(gpu.device(DeviceType.CUDA).orElseThrow().capability())
        .contains(new ComputeCapability(9, 0));
    assertThat(new ComputeCapability(10, 0).atLeast(9, 9)).isTrue();
    assertThatIllegalArgumentException().isThrownBy(() -> new DeviceType("CUDA"));
  }

  @Test
  void inputsAreCheckedAtTheDoor() {
    Tensor ids = Tensor.ofInts(new int[4], 2, 2);
    Tensor weights = Tensor.ofFloats(new float[4], 2, 2);
    Tensor hidden = Tensor.ofFloats(new float[6], 2, 3);
    ExpertRouting routing = new ExpertRouting(ids, weights, null);
    assertThat(ExpertsInputs.standard(hidden, routing, hidden).requireRouting()).isSameAs(routing);
    assertThatIllegalArgumentException()
        .isThrownBy(() -> new ExpertRouting(weights, weights, null))
        .withMessageContaining("must be I32 [T, K]");
    assertThatIllegalArgumentException()
        .isThrownBy(() -> new ExpertsInputs(hidden, null, null, hidden));
    assertThatIllegalArgumentException()
        .isThrownBy(() ->
            ExpertsInputs.standard(
                Tensor.ofFloats(new float[9], 3, 3), routing, Tensor.ofFloats(new float[9], 3, 3)))
        .withMessageContaining("for 3 tokens");
    assertThat(new Workspace(hidden.memory()).tensor(4, DType.F32, 5).elementCount()).isEqualTo(5);
    assertThat(Workspace.align(65)).isEqualTo(128);
  }
}
