package io.moe4j.backend.cpu.options;

import java.util.Arrays;
import java.util.Locale;
import java.util.stream.Stream;

/**
 * Which kernels compute a layer on the host processor. A set that the machine lacks, or a library
 * that does not load, leaves those in Java; {@code explain()} then says why.
 *
 * @since 0.2.0
 */
public enum CpuKernels {
  /** The fastest that the machine has. */
  AUTO,
  /** Those in C for 256-bit vectors with FMA and F16C. */
  AVX2,
  /** Those in C for 512-bit vectors. */
  AVX512,
  /** Those in C for AVX-512 that multiplies pairs of bf16. */
  AVX512BF16,
  /** Those in C for tiles of bf16. */
  AMX,
  /** Those in C for aarch64. */
  NEON,
  /** Those in C for aarch64 that multiplies pairs of bf16. */
  NEONBF16,
  /** Those in Java: the Vector API's, scalar ones where {@code jdk.incubator.vector} is missing. */
  JAVA,
  /** Plain loops in Java. */
  SCALAR;

  /** {@return its name in lower case, as tools print it} */
  public String text() {
    return name().toLowerCase(Locale.ROOT);
  }

  /** {@return whether it names an instruction set of the kernels in C} */
  public boolean isInstructionSet() {
    return this != AUTO && this != JAVA && this != SCALAR;
  }

  /** {@return what {@value CpuProperties#NATIVE} may name} */
  static CpuKernels[] natives() {
    return Stream.concat(
            Stream.of(AUTO, JAVA), Arrays.stream(values()).filter(CpuKernels::isInstructionSet))
        .toArray(CpuKernels[]::new);
  }

  /** {@return the word for it there} */
  String nativeText() {
    return this == JAVA ? "off" : text();
  }
}
