package io.moe4j.api.device;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.MemorySegment;
import org.junit.jupiter.api.Test;

class WorkspaceLayoutTest {
  private static Workspace workspace(long bytes) {
    return new Workspace(
        new HostMemory(MemorySegment.ofArray(new long[Math.toIntExact(bytes / Long.BYTES)])));
  }

  @Test
  void partsFollowEachOtherAtMultiplesOf64() {
    WorkspaceLayout layout = new WorkspaceLayout();
    assertThat(layout.byteSize()).isZero();
    assertThat(layout.reserve(1)).isZero();
    WorkspaceLayout.Part part = layout.reserve(DType.BF16, 3, 11);
    assertThat(part.offset()).isEqualTo(64);
    assertThat(part.byteSize()).isEqualTo(66);
    assertThat(layout.reserve(0)).isEqualTo(192);
    assertThat(layout.reserve(64)).isEqualTo(192);
    assertThat(layout.byteSize()).isEqualTo(256);
  }

  @Test
  void writingOnePartLeavesTheOthersAlone() {
    WorkspaceLayout layout = new WorkspaceLayout();
    WorkspaceLayout.Part first = layout.reserve(DType.F32, 2, 8);
    WorkspaceLayout.Part second = layout.reserve(DType.I32, 16);
    Workspace workspace = workspace(layout.byteSize());
    Tensor a = first.in(workspace);
    Tensor b = second.in(workspace);
    assertThat(a.shape()).containsExactly(2, 8);
    assertThat(b.dtype()).isEqualTo(DType.I32);
    a.set(7f, 1, 7);
    assertThat(b.toInts()).containsOnly(0);
    b.segment().fill((byte) 1);
    assertThat(a.get(1, 7)).isEqualTo(7f);
    assertThat(a.get(0, 0)).isZero();
  }

  @Test
  void aSmallerCallTakesTheBeginningOfAPart() {
    WorkspaceLayout layout = new WorkspaceLayout();
    layout.reserve(5);
    WorkspaceLayout.Part part = layout.reserve(DType.F32, 4, 8);
    Workspace workspace = workspace(layout.byteSize());
    part.in(workspace).set(3f, 0, 1);
    assertThat(part.in(workspace, 2, 8).get(0, 1)).isEqualTo(3f);
    assertThatIllegalArgumentException()
        .isThrownBy(() -> part.in(workspace, 5, 8))
        .withMessageContaining("F32[5, 8] needs 160 bytes")
        .withMessageContaining("has 128");
  }

  @Test
  void aWorkspaceShorterThanTheLayoutIsRefused() {
    WorkspaceLayout layout = new WorkspaceLayout();
    layout.reserve(64);
    WorkspaceLayout.Part part = layout.reserve(DType.F32, 16);
    assertThatIllegalArgumentException().isThrownBy(() -> part.in(workspace(64)));
  }

  @Test
  void negativeSizesAndOverflowAreErrors() {
    WorkspaceLayout layout = new WorkspaceLayout();
    assertThatIllegalArgumentException()
        .isThrownBy(() -> layout.reserve(-1))
        .withMessageContaining("bytes is -1");
    assertThatIllegalArgumentException()
        .isThrownBy(() -> layout.reserve(DType.F32, 2, -1))
        .withMessageContaining("[2, -1]");
    assertThatExceptionOfType(ArithmeticException.class)
        .isThrownBy(() -> layout.reserve(DType.F32, Long.MAX_VALUE / 2, 4));
    assertThatExceptionOfType(ArithmeticException.class)
        .isThrownBy(() -> layout.reserve(Long.MAX_VALUE));
    layout.reserve(Long.MAX_VALUE - 1023);
    assertThatExceptionOfType(ArithmeticException.class).isThrownBy(() -> layout.reserve(1024));
    assertThat(layout.byteSize()).as("after a refusal").isEqualTo(Long.MAX_VALUE - 1023 + 0L);
  }
}
