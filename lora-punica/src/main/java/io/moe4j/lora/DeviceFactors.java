package io.moe4j.lora;

import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.spi.Device;
import io.moe4j.api.spi.DeviceStream;
import io.moe4j.api.spi.Workspace;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Memory;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.EnumMap;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/**
 * The factors of one adapter on a device: for each layer one contiguous buffer that holds every
 * distinct tensor densely, row-major, each at a multiple of {@link Workspace#ALIGNMENT}. An expert
 * dimension of stride 0 is stored once; an A that two targets share is stored once.
 */
final class DeviceFactors implements AutoCloseable {
  private final List<Device.Buffer> buffers;
  private final @Nullable LoraLayer[] layers;

  private DeviceFactors(List<Device.Buffer> buffers, @Nullable LoraLayer[] layers) {
    this.buffers = buffers;
    this.layers = layers;
  }

  /**
   * Copies; done when it returns.
   *
   * @param device where to
   * @param host by layer ordinal, in host memory
   */
  static DeviceFactors upload(Device device, @Nullable LoraLayer[] host) {
    List<Device.Buffer> buffers = new ArrayList<>();
    @Nullable LoraLayer[] layers = new LoraLayer[host.length];
    DeviceStream stream = device.defaultStream();
    boolean done = false;
    try {
      for (int i = 0; i < host.length; i++) {
        LoraLayer layer = host[i];
        if (layer != null) {
          layers[i] = uploadLayer(device, stream, layer, buffers);
        }
      }
      done = true;
      return new DeviceFactors(buffers, layers);
    } finally {
      if (!done) {
        buffers.forEach(Device.Buffer::close);
      }
    }
  }

  private static LoraLayer uploadLayer(
      Device device, DeviceStream stream, LoraLayer layer, List<Device.Buffer> buffers) {
    List<Tensor> distinct = new ArrayList<>();
    List<Long> offsets = new ArrayList<>();
    long total = 0;
    for (LoraFactors f : layer.factors().values()) {
      for (Tensor t : List.of(f.a(), f.b())) {
        if (indexOf(distinct, t) < 0) {
          distinct.add(t);
          offsets.add(total);
          Tensor stored = stored(t);
          total += Workspace.align(stored.dtype().byteSize(stored.elementCount()));
        }
      }
    }
    Device.Buffer buffer = device.allocate(total);
    buffers.add(buffer);
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment staging = arena.allocate(total, Workspace.ALIGNMENT);
      for (int i = 0; i < distinct.size(); i++) {
        Tensors.copyDense(stored(distinct.get(i)), staging, offsets.get(i));
      }
      device.copy(
          Tensor.of(DType.U8, staging, total), Tensor.of(DType.U8, buffer.memory(), total), stream);
      // The staging memory goes away, and other streams may read the factors as soon as we return.
      stream.synchronize();
    }
    Map<LoraTarget, LoraFactors> out = new EnumMap<>(LoraTarget.class);
    layer
        .factors()
        .forEach((target, f) ->
            out.put(
                target,
                new LoraFactors(
                    view(f.a(), buffer.memory(), offsets.get(indexOf(distinct, f.a()))),
                    view(f.b(), buffer.memory(), offsets.get(indexOf(distinct, f.b()))))));
    return new LoraLayer(out);
  }

  private static int indexOf(List<Tensor> list, Tensor t) {
    for (int i = 0; i < list.size(); i++) {
      if (Tensors.sameView(list.get(i), t)) {
        return i;
      }
    }
    return -1;
  }

  /** One expert where all experts share it. */
  private static Tensor stored(Tensor t) {
    return t.stride(0) == 0 && t.size(0) > 1 ? t.narrow(0, 0, 1) : t;
  }

  private static Tensor view(Tensor t, Memory memory, long byteOffset) {
    long rowStride = t.size(2);
    long expertStride = t.stride(0) == 0 && t.size(0) > 1 ? 0 : t.size(1) * t.size(2);
    return Tensor.strided(
        t.dtype(), memory, byteOffset, t.shape(), new long[] {expertStride, rowStride, 1});
  }

  @Nullable LoraLayer layer(int ordinal) {
    return layers[ordinal];
  }

  @Override
  public void close() {
    buffers.forEach(Device.Buffer::close);
  }
}
