package io.moe4j.comm.nccl;

import io.moe4j.api.spi.ExpertExchangeProvider;

/** Sums of ranks that all have the same tokens. */
class DeviceAllReduceConformanceTest extends HostExchangeConformanceTest {
  @Override
  protected ExpertExchangeProvider provider() {
    return new DeviceAllReduceProvider(_ -> new HostKernels());
  }
}
