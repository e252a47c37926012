/** Experts on the host processor: a float64 reference and a fast path on the Vector API. */
module io.moe4j.backend.cpu {
  requires transitive io.moe4j.api;
  requires io.moe4j.reference;
  requires static transitive org.jspecify;
  requires static jdk.incubator.vector;
  requires jdk.management;
  requires org.slf4j;

  exports io.moe4j.backend.cpu;
  exports io.moe4j.backend.cpu.options;
  exports io.moe4j.backend.cpu.reference;

  provides io.moe4j.api.device.DeviceProvider with
      io.moe4j.backend.cpu.CpuDeviceProvider;
  provides io.moe4j.api.spi.BlockOpsProvider with
      io.moe4j.backend.cpu.CpuBlockOpsProvider;
  provides io.moe4j.api.spi.ExpertsBackend with
      io.moe4j.backend.cpu.CpuExpertsBackend,
      io.moe4j.backend.cpu.reference.CpuReferenceBackend,
      io.moe4j.backend.cpu.reference.BatchedCpuReferenceBackend;
}
