package io.moe4j.comm.nccl;

import io.moe4j.api.config.ExpertPlacement;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.tensor.Tensor;
import java.util.concurrent.atomic.AtomicReference;
import org.jspecify.annotations.Nullable;

/** Which rank computes an expert that several have, on the device; nothing where none is twice. */
final class Owners implements AutoCloseable {
  private final @Nullable Tensor table;
  private final AtomicReference<Device.@Nullable Buffer> buffer = new AtomicReference<>();

  Owners(MoeConfig config, Device device) {
    ExpertPlacement placement =
        config.placement().filter(ExpertPlacement::isRedundant).orElse(null);
    table = placement == null ? null : upload(placement, device);
  }

  private Tensor upload(ExpertPlacement placement, Device device) {
    int experts = placement.numExperts();
    int[] by = new int[placement.ranks() * experts];
    for (int i = 0; i < by.length; i++) {
      by[i] = placement.rank(i % experts, i / experts);
    }
    Tensor host = Tensor.ofInts(by, placement.ranks(), experts);
    Device.Buffer there = device.allocate((long) by.length * Integer.BYTES);
    buffer.set(there);
    Tensor on = Tensor.of(host.dtype(), there.memory(), host.shape());
    device.copy(host, on, device.defaultStream());
    device.defaultStream().synchronize(); // the source may go away
    return on;
  }

  /** {@return int32 {@code [expert-parallel ranks, E]}, by the rank that has the token; or null} */
  @Nullable Tensor table() {
    return table;
  }

  @Override
  public void close() {
    Device.Buffer there = buffer.getAndSet(null);
    if (there != null) {
      there.close();
    }
  }
}
