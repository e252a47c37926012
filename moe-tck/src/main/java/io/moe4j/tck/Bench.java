package io.moe4j.tck;

import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Memory;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.IdentityHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;

/** Guarded tensors of one call of a block operation. */
final class Bench implements AutoCloseable {
  final Device device;
  final DeviceStream stream;
  private final Map<Memory, Guarded> inputs = new HashMap<>();
  private final IdentityHashMap<Tensor, Guarded> outputs = new IdentityHashMap<>();
  private final List<Guarded> workspaces = new ArrayList<>();

  Bench(Device device) {
    this.device = device;
    this.stream = device.defaultStream();
  }

  /** {@return a copy on the device that must not be written} */
  Tensor input(Tensor host) {
    return inputs
        .computeIfAbsent(
            host.memory(),
            memory -> {
              MemorySegment segment = ((HostMemory) memory).segment();
              return Guarded.of(device, stream, segment.toArray(ValueLayout.JAVA_BYTE), 0);
            })
        .like(host);
  }

  /** {@return memory on the device to be written} */
  Tensor output(DType dtype, long... shape) {
    long n = 1;
    for (long s : shape) {
      n *= s;
    }
    Guarded guarded = Guarded.empty(device, stream, dtype.byteSize(n), 0);
    Tensor tensor = guarded.tensor(dtype, shape);
    outputs.put(tensor, guarded);
    return tensor;
  }

  /** {@return a copy on the device that may be written} */
  Tensor inout(Tensor host) {
    Guarded guarded = Guarded.of(device, stream, host.segment().toArray(ValueLayout.JAVA_BYTE), 0);
    Tensor tensor = guarded.tensor(host.dtype(), host.shape());
    outputs.put(tensor, guarded);
    return tensor;
  }

  Workspace workspace(long byteSize) {
    Guarded guarded = Guarded.empty(device, stream, byteSize, 0);
    workspaces.add(guarded);
    return guarded.workspace();
  }

  /** {@return what was written, on the host} */
  Tensor read(Tensor output) {
    Tensor host = Data.empty(output.dtype(), output.shape());
    Guarded guarded = Objects.requireNonNull(outputs.get(output), "not an output");
    host.segment().copyFrom(MemorySegment.ofArray(guarded.content()));
    return host;
  }

  double[][] rows(Tensor output) {
    Tensor host = read(output);
    double[][] rows = new double[Math.toIntExact(host.size(0))][];
    for (int t = 0; t < rows.length; t++) {
      rows[t] = host.select(0, t).toDoubles();
    }
    return rows;
  }

  /** Fails if an input or a guard band was written. */
  void requireNothingElseWritten() {
    inputs.values().forEach(g -> g.requireUnchanged("a tensor given to the block"));
    outputs.values().forEach(g -> g.requireBandsIntact("an output of the block"));
    workspaces.forEach(g -> g.requireBandsIntact("the block's workspace"));
  }

  @Override
  public void close() {
    inputs.values().forEach(Guarded::close);
    outputs.values().forEach(Guarded::close);
    workspaces.forEach(Guarded::close);
  }
}
