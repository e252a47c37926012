package io.moe4j.lora.cuda;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaDeviceProvider;
import io.moe4j.cuda.CudaStream;
import io.moe4j.cuda.DeviceBuffer;
import io.moe4j.lora.DeltaReference;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.EnumMap;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import org.jspecify.annotations.Nullable;

/** The first card, tensors on it, and outputs between guard bands. */
final class Rig implements AutoCloseable {
  private static final int GUARD = 256;

  final CudaDevice device = new CudaDeviceProvider().open(0);
  final CudaStream stream = device.defaultStream();
  private final List<DeviceBuffer> owned = new ArrayList<>();

  Tensor upload(Tensor host) {
    long bytes = host.dtype().byteSize(Math.max(1, host.elementCount()));
    DeviceBuffer buffer = device.allocate(bytes);
    owned.add(buffer);
    Tensor t = buffer.tensor(host.dtype(), host.shape());
    if (host.elementCount() > 0) {
      device.copy(dense(host), t, stream);
    }
    stream.synchronize();
    return t;
  }

  /** The elements of any view, row-major. */
  private static Tensor dense(Tensor t) {
    if (t.isContiguous()) {
      return t;
    }
    Tensor out =
        Tensor.of(
            t.dtype(),
            MemorySegment.ofArray(new byte[(int) t.dtype().byteSize(t.elementCount())]),
            t.shape());
    copyInto(t, out);
    return out;
  }

  private static void copyInto(Tensor from, Tensor to) {
    if (from.dims() == 1) {
      for (long i = 0; i < from.size(0); i++) {
        to.set(from.get(i), i);
      }
    } else {
      for (long i = 0; i < from.size(0); i++) {
        copyInto(from.select(0, i), to.select(0, i));
      }
    }
  }

  /** A tensor with the strides of the host's, stride 0 along experts included. */
  Tensor uploadView(Tensor host) {
    if (host.stride(0) == 0 && host.size(0) > 1) {
      return upload(host.select(0, 0)).expand(host.size(0));
    }
    return upload(host);
  }

  LoraLayer upload(LoraLayer layer) {
    Map<LoraTarget, LoraFactors> out = new EnumMap<>(LoraTarget.class);
    List<Tensor> seen = new ArrayList<>();
    List<Tensor> there = new ArrayList<>();
    layer
        .factors()
        .forEach((target, f) -> {
          Tensor[] pair = {f.a(), f.b()};
          for (int i = 0; i < 2; i++) {
            int known = seen.indexOf(pair[i]);
            if (known < 0) {
              seen.add(pair[i]);
              there.add(uploadView(pair[i]));
              known = seen.size() - 1;
            }
            pair[i] = there.get(known);
          }
          out.put(target, new LoraFactors(pair[0], pair[1]));
        });
    return new LoraLayer(out);
  }

  /** Slots and a mapping without a registry. */
  record Context(List<@Nullable LoraLayer> slots, Tensor tokenLoraMapping, PunicaWrapper punica)
      implements MoeLoraContext {
    @Override
    public int maxLoras() {
      return slots.size();
    }

    @Override
    public boolean hasLora() {
      return true;
    }

    @Override
    public @Nullable LoraLayer slot(int slot) {
      return slots.get(slot);
    }

    @Override
    public PunicaWrapper punicaWrapper() {
      return punica;
    }

    @Override
    public MoeLoraContext withTokenLoraMapping(Tensor mapping) {
      return new Context(slots, mapping, punica);
    }
  }

  Context context(PunicaWrapper punica, List<@Nullable LoraLayer> host, int... mapping) {
    List<@Nullable LoraLayer> there = new ArrayList<>();
    for (LoraLayer layer : host) {
      there.add(layer == null ? null : upload(layer));
    }
    return new Context(there, upload(Tensor.ofInts(mapping, mapping.length)), punica);
  }

  /** An output of random numbers between guard bands of random bytes, padded rows if wanted. */
  final class Output {
    final Tensor tensor;
    final byte[] before;
    private final DeviceBuffer buffer;
    private final Tensor hostView;
    private final byte[] bytes;

    Output(SplittableRandom rng, DType dtype, int rowPadding, long... shape) {
      long[] strides = new long[shape.length];
      long step = 1;
      for (int d = shape.length - 1; d >= 0; d--) {
        strides[d] = step;
        step *= Math.max(1, shape[d]) + (d == shape.length - 1 ? rowPadding : 0);
      }
      bytes = new byte[(int) dtype.byteSize(step) + 2 * GUARD];
      for (int i = 0; i < bytes.length; i++) {
        bytes[i] = (byte) rng.nextInt();
      }
      MemorySegment segment = MemorySegment.ofArray(bytes);
      hostView =
          Tensor.strided(dtype, new io.moe4j.api.tensor.HostMemory(segment), GUARD, shape, strides);
      fill(hostView, rng);
      before = bytes.clone();
      buffer = device.allocate(bytes.length);
      owned.add(buffer);
      tensor = Tensor.strided(dtype, buffer.memory(), GUARD, shape, strides);
      reset();
    }

    private static void fill(Tensor t, SplittableRandom rng) {
      for (long i = 0; i < t.size(0); i++) {
        if (t.dims() == 1) {
          t.set(rng.nextDouble() * 2 - 1, i);
        } else {
          fill(t.select(0, i), rng);
        }
      }
    }

    void reset() {
      device.copy(
          Tensor.of(DType.U8, MemorySegment.ofArray(before.clone()), before.length),
          buffer.tensor(DType.U8, before.length),
          stream);
      stream.synchronize();
    }

    byte[] download() {
      stream.synchronize();
      device.copy(
          buffer.tensor(DType.U8, bytes.length),
          Tensor.of(DType.U8, MemorySegment.ofArray(bytes), bytes.length),
          stream);
      stream.synchronize();
      return bytes.clone();
    }

    double[] old() {
      System.arraycopy(before, 0, bytes, 0, bytes.length);
      return hostView.toDoubles();
    }

    /** Elements as the reference says; everything else, padding and guards too, bit for bit. */
    void compare(DeltaReference ref, String what) {
      byte[] after = download();
      double[] got = hostView.toDoubles();
      long width = hostView.dtype().byteSize(1);
      boolean[] mayChange = new boolean[after.length];
      long row = hostView.size(hostView.dims() - 1);
      for (int i = 0; i < got.length; i++) {
        if (ref.written[i]) {
          long at = GUARD + width * (i / row * rowStride() + i % row);
          Arrays.fill(mayChange, (int) at, (int) (at + width), true);
          assertThat(Math.abs(got[i] - ref.expected[i]))
              .as("%s: element %d is %s, expected %s", what, i, got[i], ref.expected[i])
              .isLessThanOrEqualTo(ref.bound[i]);
        }
      }
      for (int i = 0; i < after.length; i++) {
        if (!mayChange[i]) {
          assertThat(after[i])
              .as("%s: byte %d of the output", what, i - GUARD)
              .isEqualTo(before[i]);
        }
      }
    }

    private long rowStride() {
      return hostView.dims() == 1 ? 1 : hostView.stride(hostView.dims() - 2);
    }
  }

  @Override
  public void close() {
    stream.synchronize();
    owned.forEach(DeviceBuffer::close);
    device.close();
  }
}
