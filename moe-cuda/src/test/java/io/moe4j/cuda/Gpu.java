package io.moe4j.cuda;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Random;

/**
 * The first card, and tensors on it between guard bands: closing checks that nothing was written
 * outside of them.
 */
public final class Gpu implements AutoCloseable {
  private static final int GUARD = 256;
  private static final byte PATTERN = (byte) 0xa5;

  private record Guarded(DeviceBuffer buffer, long byteSize) {}

  public final CudaDevice device = new CudaDeviceProvider().open(0);
  public final CudaStream stream = device.defaultStream();
  private final List<Guarded> tensors = new ArrayList<>();

  /** Opens it. */
  public Gpu() {}

  /** A kernel of this module. */
  public Kernel kernel(String name, Map<String, String> constants) {
    KernelLibrary library = KernelLibrary.of(CudaDevice.class, "moe-cuda");
    return device.kernel(library, library.select(device.info(), name, constants));
  }

  /** Filled with a pattern that is NaN in every float type. */
  public Tensor empty(DType dtype, long... shape) {
    long elements = 1;
    for (long s : shape) {
      elements *= s;
    }
    long bytes = dtype.byteSize(elements);
    DeviceBuffer buffer = device.allocate(bytes + 2 * GUARD);
    Tensor all = buffer.tensor(DType.U8, bytes + 2 * GUARD);
    device.fill(all, PATTERN, stream);
    long[] strides = new long[shape.length];
    long step = 1;
    for (int d = shape.length - 1; d >= 0; d--) {
      strides[d] = step;
      step *= Math.max(1, shape[d]);
    }
    Tensor inner = Tensor.strided(dtype, buffer.memory(), GUARD, shape, strides);
    device.fill(inner, 0xff, stream);
    tensors.add(new Guarded(buffer, bytes));
    return inner;
  }

  public Tensor upload(Tensor host) {
    Tensor t = empty(host.dtype(), host.shape());
    device.copy(host, t, stream);
    return t;
  }

  public Tensor ints(int[] values, long... shape) {
    return upload(Tensor.ofInts(values, shape));
  }

  /** Rounded to {@code dtype} on the way. */
  public Tensor floats(DType dtype, float[] values, long... shape) {
    return upload(host(dtype, values, shape));
  }

  public static Tensor host(DType dtype, float[] values, long... shape) {
    Tensor t =
        Tensor.of(
            dtype, MemorySegment.ofArray(new byte[(int) dtype.byteSize(values.length)]), shape);
    Tensor flat = t.reshape(values.length);
    for (int i = 0; i < values.length; i++) {
      flat.set(values[i], i);
    }
    return t;
  }

  public Tensor download(Tensor t) {
    Tensor host =
        Tensor.of(
            t.dtype(),
            MemorySegment.ofArray(new byte[(int) t.dtype().byteSize(t.elementCount())]),
            t.shape());
    device.copy(t, host, stream);
    stream.synchronize();
    return host;
  }

  public float[] floats(Tensor t) {
    return download(t).toFloats();
  }

  public int[] ints(Tensor t) {
    return download(t).toInts();
  }

  public static float[] random(Random random, int n, float scale) {
    float[] v = new float[n];
    for (int i = 0; i < n; i++) {
      v[i] = (float) random.nextGaussian() * scale;
    }
    return v;
  }

  /** NaN fails; otherwise {@code |a - b| / |b|} over all elements. */
  public static void assertClose(float[] actual, double[] expected, double tolerance, String what) {
    assertThat(actual).as(what).hasSameSizeAs(expected);
    double error = 0;
    double norm = 0;
    for (int i = 0; i < actual.length; i++) {
      error += (actual[i] - expected[i]) * (actual[i] - expected[i]);
      norm += expected[i] * expected[i];
    }
    assertThat(Math.sqrt(error) / Math.max(Math.sqrt(norm), Double.MIN_NORMAL))
        .as("relative L2 error of %s", what)
        .isLessThanOrEqualTo(tolerance);
  }

  @Override
  public void close() {
    stream.synchronize();
    for (Guarded g : tensors) {
      byte[] all = new byte[Math.toIntExact(g.byteSize + 2 * GUARD)];
      device.copy(
          g.buffer.tensor(DType.U8, all.length),
          Tensor.of(DType.U8, MemorySegment.ofArray(all), all.length),
          stream);
      for (int i = 0; i < GUARD; i++) {
        assertThat(all[i]).as("guard %d bytes before a tensor", GUARD - i).isEqualTo(PATTERN);
        assertThat(all[all.length - 1 - i])
            .as("guard %d bytes behind a tensor", GUARD - i)
            .isEqualTo(PATTERN);
      }
      g.buffer.close();
    }
    device.close();
  }
}
