package io.moe4j.backend.cpu.ffi;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

class NativeKernelsTest {
  @AfterEach
  void forget() {
    System.clearProperty(NativeKernels.PROPERTY);
  }

  @Test
  void thePropertySwitchesThemOff() {
    System.setProperty(NativeKernels.PROPERTY, "off");
    assertThat(NativeKernels.choice().kernels()).isNull();
    assertThat(NativeKernels.choice().reason()).isEqualTo("-Dmoe4j.cpu.native=off");
  }

  @Test
  void anUnknownNameIsAnError() {
    System.setProperty(NativeKernels.PROPERTY, "sse9");
    assertThatThrownBy(NativeKernels::choice)
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("sse9")
        .hasMessageContaining("auto, off, avx2, avx512, avx512bf16, amx, neon, neonbf16");
  }

  /** What the machine lacks is a line of reason, not an error. */
  @ParameterizedTest
  @EnumSource(Isa.class)
  void aNamedSetIsTakenOrRefusedInOneLine(Isa isa) {
    System.setProperty(NativeKernels.PROPERTY, isa.name().toLowerCase(java.util.Locale.ROOT));
    NativeKernels.Choice choice = NativeKernels.choice();
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
    NativeKernels best = NativeKernels.choice().kernels();
    assumeTrue(best != null, () -> "no kernels here: " + NativeKernels.choice().reason());
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
