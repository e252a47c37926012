package io.moe4j.api.device;

import io.moe4j.api.platform.DeviceId;

/**
 * An ordered queue of work on a device. On the host there is one, {@link #HOST}, on which every
 * call has finished when it returns.
 *
 * @since 0.1.0
 */
public interface DeviceStream {
  /** The host's stream: synchronous. */
  DeviceStream HOST =
      new DeviceStream() {
        @Override
        public DeviceId device() {
          return DeviceId.CPU;
        }

        @Override
        public long handle() {
          return 0;
        }

        @Override
        public void synchronize() {}

        @Override
        public String toString() {
          return "host stream";
        }
      };

  /** {@return the device it belongs to} */
  DeviceId device();

  /** {@return the device's raw handle, for CUDA a {@code CUstream}; 0 on the host} */
  long handle();

  /** Waits until everything enqueued so far has finished. */
  void synchronize();
}
