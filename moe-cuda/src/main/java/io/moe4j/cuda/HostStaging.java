package io.moe4j.cuda;

import io.moe4j.api.device.DeviceStream;
import io.moe4j.cuda.ffi.CudaDriver;
import java.lang.foreign.MemorySegment;
import org.jspecify.annotations.Nullable;

/**
 * Carries Java heap memory to the device and back through two page-locked halves, one being filled
 * while the other is on its way. Taken when first needed; one copy at a time.
 */
final class HostStaging implements AutoCloseable {
  private static final long HALF = 4L << 20;

  private record Half(PinnedBuffer buffer, CudaEvent sent) {}

  private final CudaContext context;
  private final @Nullable Half[] halves = new Half[2];
  private int turn;

  HostStaging(CudaContext context) {
    this.context = context;
  }

  private Half next() {
    turn ^= 1;
    Half half = halves[turn];
    if (half == null) {
      half = new Half(new PinnedBuffer(context, HALF), new CudaEvent(context, false));
      halves[turn] = half;
    }
    half.sent.synchronize();
    return half;
  }

  /** The source may change once this returns. */
  synchronized void upload(MemorySegment from, long to, DeviceStream stream) {
    for (long at = 0; at < from.byteSize(); at += HALF) {
      long n = Math.min(HALF, from.byteSize() - at);
      Half half = next();
      MemorySegment.copy(from, at, half.buffer.segment(), 0, n);
      copyToDevice(half.buffer.segment().asSlice(0, n), to + at, stream);
      half.sent.record(stream);
    }
  }

  /** The destination is complete once this returns. */
  synchronized void download(long from, MemorySegment to, DeviceStream stream) {
    for (long at = 0; at < to.byteSize(); at += HALF) {
      long n = Math.min(HALF, to.byteSize() - at);
      Half half = next();
      copyToHost(from + at, half.buffer.segment().asSlice(0, n), stream);
      half.sent.record(stream);
      half.sent.synchronize();
      MemorySegment.copy(half.buffer.segment(), 0, to, at, n);
    }
  }

  static void copyToDevice(MemorySegment from, long to, DeviceStream stream) {
    Cu.check(
        CudaDriver.cuMemcpyHtoDAsync_v2(to, from, from.byteSize(), CudaStream.segment(stream)),
        "cuMemcpyHtoDAsync",
        () -> from.byteSize() + " bytes to 0x" + Long.toHexString(to));
  }

  static void copyToHost(long from, MemorySegment to, DeviceStream stream) {
    Cu.check(
        CudaDriver.cuMemcpyDtoHAsync_v2(to, from, to.byteSize(), CudaStream.segment(stream)),
        "cuMemcpyDtoHAsync",
        () -> to.byteSize() + " bytes from 0x" + Long.toHexString(from));
  }

  @Override
  public synchronized void close() {
    for (int i = 0; i < halves.length; i++) {
      Half half = halves[i];
      if (half != null) {
        half.sent.synchronize();
        half.sent.close();
        half.buffer.close();
        halves[i] = null;
      }
    }
  }
}
