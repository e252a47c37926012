package io.moe4j.tck;

import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Memory;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;

/**
 * Device memory between two guard bands. The bands (and what is not written yet) hold a pattern
 * that reads as NaN in every float dtype and as a negative int, so that a read beyond a tensor
 * spoils the result and a write beyond it is seen.
 */
final class Guarded implements AutoCloseable {
  /** Bytes on either side. */
  private static final int BAND = 256;

  private final Device device;
  private final DeviceStream stream;
  private final Device.Buffer buffer;
  private final int begin;
  private final int length;
  private final byte[] image;

  private Guarded(Device device, DeviceStream stream, byte[] content, int shift) {
    this.device = device;
    this.stream = stream;
    this.begin = BAND + shift;
    this.length = content.length;
    this.image = pattern(begin + length + BAND);
    System.arraycopy(content, 0, image, begin, length);
    this.buffer = device.allocate(image.length);
    device.copy(bytes(image), Tensor.of(DType.U8, buffer.memory(), image.length), stream);
  }

  private static Tensor bytes(byte[] a) {
    return Tensor.of(DType.U8, MemorySegment.ofArray(a), a.length);
  }

  private static byte[] pattern(int n) {
    byte[] a = new byte[n];
    for (int i = 0; i < n; i++) {
      a[i] = (byte) (i % 2 == 0 ? 0xFE : 0xFF);
    }
    return a;
  }

  /** A copy of some bytes, {@code shift} bytes off the natural alignment. */
  static Guarded of(Device device, DeviceStream stream, byte[] content, int shift) {
    return new Guarded(device, stream, content, shift);
  }

  /** Memory to be written. */
  static Guarded empty(Device device, DeviceStream stream, long byteSize, int shift) {
    return new Guarded(device, stream, pattern(Math.toIntExact(byteSize)), shift);
  }

  /** {@return a contiguous view of the inside, in a memory that is longer on both sides} */
  Tensor tensor(DType dtype, long... shape) {
    Tensor dense = Tensor.of(dtype, new HostMemory(MemorySegment.ofArray(new byte[length])), shape);
    long[] strides = new long[shape.length];
    for (int d = 0; d < strides.length; d++) {
      strides[d] = dense.stride(d);
    }
    return Tensor.strided(dtype, buffer.memory(), begin, shape, strides);
  }

  /** {@return a view of the inside with the offset and strides that {@code like} has in its own} */
  Tensor like(Tensor like) {
    long[] strides = new long[like.dims()];
    for (int d = 0; d < strides.length; d++) {
      strides[d] = like.stride(d);
    }
    return Tensor.strided(
        like.dtype(), buffer.memory(), begin + like.byteOffset(), like.shape(), strides);
  }

  /** {@return the inside as scratch, exactly as long as asked for} */
  Workspace workspace() {
    Memory memory =
        switch (buffer.memory()) {
          case HostMemory host -> new HostMemory(host.segment().asSlice(begin, length));
          case DeviceMemory d -> new DeviceMemory(d.device(), d.address() + begin, length);
        };
    return new Workspace(memory);
  }

  /** {@return the inside, copied to the host} */
  byte[] content() {
    return Arrays.copyOfRange(read(), begin, begin + length);
  }

  private byte[] read() {
    byte[] now = new byte[image.length];
    device.copy(Tensor.of(DType.U8, buffer.memory(), image.length), bytes(now), stream);
    stream.synchronize();
    return now;
  }

  /** Fails if a band was written. */
  void requireBandsIntact(String what) {
    byte[] now = read();
    for (int i = 0; i < now.length; i++) {
      boolean inside = i >= begin && i < begin + length;
      if (!inside && now[i] != image[i]) {
        throw new AssertionError(
            "MOE-3.1: "
                + what
                + " was written "
                + (i < begin
                    ? begin - i + " bytes before its begin"
                    : i - begin - length + " bytes after its end"));
      }
    }
  }

  /** Fails if anything was written. */
  void requireUnchanged(String what) {
    int at = Arrays.mismatch(read(), image);
    if (at >= 0) {
      boolean inside = at >= begin && at < begin + length;
      throw new AssertionError(
          (inside ? "MOE-3.2: " : "MOE-3.1: ")
              + what
              + " is an input and was written at byte "
              + (at - begin)
              + " of "
              + length);
    }
  }

  @Override
  public void close() {
    buffer.close();
  }
}
