package io.moe4j.cuda;

import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;

/** Two events. */
final class CudaTimer implements Device.Timer {
  private final CudaEvent start;
  private final CudaEvent stop;

  CudaTimer(CudaContext context) {
    start = new CudaEvent(context, true);
    boolean whole = false;
    try {
      stop = new CudaEvent(context, true);
      whole = true;
    } finally {
      if (!whole) {
        start.close();
      }
    }
  }

  @Override
  public void start(DeviceStream stream) {
    start.record(stream);
  }

  @Override
  public void stop(DeviceStream stream) {
    stop.record(stream);
  }

  @Override
  public double micros() {
    stop.synchronize();
    return stop.microsSince(start);
  }

  @Override
  public void close() {
    start.close();
    stop.close();
  }
}
