package io.moe4j.backend.cpu.ffi;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

class NativeKernelsTest {
  /** What the machine lacks is a line of reason, not an error. */
  @ParameterizedTest
  @EnumSource(Isa.class)
  void aNamedSetIsTakenOrRefusedInOneLine(Isa isa) {
    NativeKernels.Choice choice = NativeKernels.choice(isa);
    NativeKernels kernels = choice.kernels();
    if (kernels == null) {
      assertThat(choice.reason()).isNotBlank().doesNotContain("\n");
    } else {
      assertThat(kernels.isa()).isEqualTo(isa);
      assertThat(choice.reason()).isEmpty();
    }
  }

  @Test
  void automaticIsTheBestThereIs() {
    NativeKernels best = NativeKernels.best().kernels();
    assumeTrue(best != null, () -> "no kernels here: " + NativeKernels.best().reason());
    for (Isa isa : Isa.values()) {
      assertThat(NativeKernels.of(isa).isPresent()).isEqualTo(isa.isIn(best.isa().code()));
    }
  }

  @Test
  void hugeMemoryIsZeroedAlignedAndExactlyAsLong() {
    assumeTrue(NativeLibrary.target().startsWith("linux"));
    try (Arena arena = Arena.ofConfined()) {
      for (long bytes : new long[] {1, 4096, (2 << 20) - 1, 2 << 20, 5_000_001}) {
        MemorySegment s = HugeMemory.allocate(bytes, arena);
        assertThat(s.byteSize()).isEqualTo(bytes);
        assertThat(s.address() % (2 << 20)).isZero();
        assertThat(s.get(ValueLayout.JAVA_BYTE, bytes - 1)).isZero();
        s.fill((byte) 1);
      }
    }
  }
}
