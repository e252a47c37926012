package io.moe4j.cuda;

import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;

/**
 * An event that is recorded once and destroyed as soon as it is seen to be done, so that those who
 * share a fence need not agree on who closes it.
 */
final class CudaFence implements Device.Fence {
  private final CudaEvent event;
  private volatile boolean done;

  /** Behind what has been enqueued on the stream so far. */
  CudaFence(CudaContext context, DeviceStream stream) {
    event = new CudaEvent(context, false);
    boolean recorded = false;
    try {
      event.record(stream);
      recorded = true;
    } finally {
      if (!recorded) {
        event.close();
      }
    }
  }

  @Override
  public boolean isDone() {
    if (!done) {
      synchronized (this) {
        if (!done && event.isDone()) {
          close();
        }
      }
    }
    return done;
  }

  @Override
  public boolean holdBack(DeviceStream stream) {
    if (done) {
      return false;
    }
    synchronized (this) {
      // The order matters: a thread that records may not even ask an event of outside.
      if (done) {
        return false;
      }
      if (CudaStream.isCapturing(stream)) {
        return true;
      }
      if (isDone()) {
        return false;
      }
      event.holdBack(stream);
      return true;
    }
  }

  @Override
  public synchronized void close() {
    if (!done) {
      done = true;
      event.close();
    }
  }
}
