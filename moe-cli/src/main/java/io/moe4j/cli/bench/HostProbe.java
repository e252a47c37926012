package io.moe4j.cli.bench;

import java.lang.foreign.MemorySegment;

/** Two inner loops whose speed is a limit of the processor: reading memory, and multiplying. */
interface HostProbe {
  /**
   * Reads every byte.
   *
   * @param memory a multiple of 64 bytes long
   * @return a sum, so that nothing is optimised away
   */
  long read(MemorySegment memory);

  /**
   * Runs fused multiply-adds on registers.
   *
   * @param iterations rounds of {@link #flopsPerIteration()}
   * @return a value, so that nothing is optimised away
   */
  float multiplyAdd(long iterations);

  /** {@return floating-point operations of one round; a multiply-add is two} */
  int flopsPerIteration();

  /** {@return how it computes, as reports name it} */
  String name();

  /** {@return the fastest probe that this JVM can run} */
  static HostProbe best() {
    return ModuleLayer.boot().findModule("jdk.incubator.vector").isPresent()
        ? new VectorProbe()
        : new ScalarProbe();
  }
}
