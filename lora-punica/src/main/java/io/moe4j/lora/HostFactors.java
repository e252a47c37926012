package io.moe4j.lora;

import io.moe4j.api.device.Device;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Memory;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.EnumMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * The factors of one adapter on their way to a device: one stretch of host memory a layer, in
 * memory that the device copies from without holding up the host. A stretch holds every distinct
 * tensor densely, row-major, each at a multiple of {@link Workspace#ALIGNMENT}. An expert dimension
 * of stride 0 is stored once; an A that two targets share is stored once.
 */
final class HostFactors implements Transfers.Factors {
  /** A layer's distinct tensors and where they lie. */
  private static final class Stretch {
    final long start;
    final List<Tensor> distinct = new ArrayList<>();
    final List<Long> offsets = new ArrayList<>();
    long end;

    Stretch(long start, LoraLayer layer) {
      this.start = start;
      this.end = start;
      for (LoraFactors f : layer.factors().values()) {
        for (Tensor t : List.of(f.a(), f.b())) {
          if (indexOf(t) < 0) {
            distinct.add(t);
            offsets.add(end);
            Tensor stored = stored(t);
            end += Workspace.align(stored.dtype().byteSize(stored.elementCount()));
          }
        }
      }
    }

    private int indexOf(Tensor t) {
      for (int i = 0; i < distinct.size(); i++) {
        if (Tensors.sameView(distinct.get(i), t)) {
          return i;
        }
      }
      return -1;
    }

    Tensor view(Tensor t, Memory memory) {
      return dense(t, memory, offsets.get(indexOf(t)));
    }
  }

  private final Device.Buffer buffer;
  private final @Nullable Stretch[] stretches;
  private final @Nullable LoraLayer[] layers;

  private HostFactors(
      Device.Buffer buffer, @Nullable Stretch[] stretches, @Nullable LoraLayer[] layers) {
    this.buffer = buffer;
    this.stretches = stretches;
    this.layers = layers;
  }

  /**
   * Copies an adapter.
   *
   * @param device where it will go
   * @param host by layer ordinal, in host memory; not read any more once this returns
   */
  static HostFactors pack(Device device, @Nullable LoraLayer[] host) {
    @Nullable Stretch[] stretches = new Stretch[host.length];
    long total = 0;
    for (int i = 0; i < host.length; i++) {
      LoraLayer layer = host[i];
      if (layer != null && !layer.factors().isEmpty()) {
        Stretch stretch = new Stretch(total, layer);
        stretches[i] = stretch;
        total = stretch.end;
      }
    }
    Device.Buffer buffer = device.allocateHost(total);
    boolean done = false;
    try {
      MemorySegment to = ((HostMemory) buffer.memory()).segment();
      @Nullable LoraLayer[] layers = new LoraLayer[host.length];
      for (int i = 0; i < host.length; i++) {
        LoraLayer layer = host[i];
        Stretch stretch = stretches[i];
        if (layer == null || stretch == null) {
          layers[i] = layer;
          continue;
        }
        for (int t = 0; t < stretch.distinct.size(); t++) {
          Tensors.copyDense(stored(stretch.distinct.get(t)), to, stretch.offsets.get(t));
        }
        Map<LoraTarget, LoraFactors> packed = new EnumMap<>(LoraTarget.class);
        layer
            .factors()
            .forEach((target, f) ->
                packed.put(
                    target,
                    new LoraFactors(
                        stretch.view(f.a(), buffer.memory()),
                        stretch.view(f.b(), buffer.memory()))));
        layers[i] = new LoraLayer(packed);
        stretch.distinct.clear(); // the caller's memory
      }
      done = true;
      return new HostFactors(buffer, stretches, layers);
    } finally {
      if (!done) {
        buffer.close();
      }
    }
  }

  /** One expert where all experts share it. */
  private static Tensor stored(Tensor t) {
    return t.stride(0) == 0 && t.size(0) > 1 ? t.narrow(0, 0, 1) : t;
  }

  private static Tensor dense(Tensor t, Memory memory, long byteOffset) {
    long rowStride = t.size(2);
    long expertStride = t.stride(0) == 0 && t.size(0) > 1 ? 0 : t.size(1) * t.size(2);
    return Tensor.strided(
        t.dtype(), memory, byteOffset, t.shape(), new long[] {expertStride, rowStride, 1});
  }

  int layerCount() {
    return layers.length;
  }

  /** By layer ordinal, in the packed memory; null where the adapter leaves the layer alone. */
  @Nullable LoraLayer[] layers() {
    return layers.clone();
  }

  /** A layer's stretch as bytes; null where there is nothing to copy. */
  @Nullable Tensor bytes(int ordinal) {
    Stretch s = stretches[ordinal];
    return s == null
        ? null
        : Tensor.strided(
            DType.U8, buffer.memory(), s.start, new long[] {s.end - s.start}, new long[] {1});
  }

  /** A layer that has {@link #bytes}, as it stands in a copy of them. */
  LoraLayer in(int ordinal, Memory copy) {
    LoraLayer layer = Objects.requireNonNull(layers[ordinal]);
    Stretch s = Objects.requireNonNull(stretches[ordinal]);
    Map<LoraTarget, LoraFactors> out = new EnumMap<>(LoraTarget.class);
    layer
        .factors()
        .forEach((target, f) ->
            out.put(
                target,
                new LoraFactors(
                    dense(f.a(), copy, f.a().byteOffset() - s.start),
                    dense(f.b(), copy, f.b().byteOffset() - s.start))));
    return new LoraLayer(out);
  }

  @Override
  public void close() {
    buffer.close();
  }
}
