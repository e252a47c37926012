package io.moe4j.lora;

import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.atomic.AtomicReferenceArray;
import org.jspecify.annotations.Nullable;

/**
 * The factors of one adapter on a device, or on their way there: for each layer one buffer, filled
 * by one copy, and a fence behind that copy.
 */
final class DeviceFactors implements Transfers.Factors {
  private final List<Device.Buffer> buffers = new ArrayList<>();
  private final List<Device.Fence> fences = new ArrayList<>();
  private final @Nullable LoraLayer[] layers;
  // Until it is seen to have arrived.
  private final AtomicReferenceArray<Device.@Nullable Fence> pending;

  private DeviceFactors(int layerCount) {
    this.layers = new LoraLayer[layerCount];
    this.pending = new AtomicReferenceArray<>(layerCount);
  }

  /**
   * Enqueues the copies, in the order of the layers, and returns.
   *
   * @param device where to
   * @param stream the copies' own
   * @param host stays as it is until the stream has done them
   */
  static DeviceFactors upload(Device device, DeviceStream stream, HostFactors host) {
    DeviceFactors out = new DeviceFactors(host.layerCount());
    boolean done = false;
    try {
      for (int i = 0; i < out.layers.length; i++) {
        Tensor bytes = host.bytes(i);
        if (bytes == null) {
          continue;
        }
        Device.Buffer buffer = device.allocate(bytes.size(0), stream);
        out.buffers.add(buffer);
        device.copy(bytes, Tensor.of(DType.U8, buffer.memory(), bytes.size(0)), stream);
        Device.Fence fence = device.fence(stream);
        out.fences.add(fence);
        out.pending.set(i, fence);
        out.layers[i] = host.in(i, buffer.memory());
      }
      done = true;
      return out;
    } finally {
      if (!done) {
        out.close();
      }
    }
  }

  @Nullable LoraLayer layer(int ordinal) {
    return layers[ordinal];
  }

  /** Makes a stream wait until a layer's factors are there. */
  void await(int ordinal, DeviceStream stream) {
    Device.Fence fence = pending.get(ordinal);
    if (fence != null && !fence.holdBack(stream)) {
      pending.set(ordinal, null);
    }
  }

  /** Gives the memory back behind the copies; other work that reads it must have finished. */
  @Override
  public void close() {
    fences.forEach(Device.Fence::close);
    buffers.forEach(Device.Buffer::close);
  }
}
