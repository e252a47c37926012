package io.moe4j.cuda;

import io.moe4j.api.device.DeviceStream;

/**
 * Somebody whose work on a device's streams can be in vain without the driver knowing: a group of
 * ranks, one of which has died. Added by {@link CudaDevice#addGuard}; asked by any thread.
 *
 * @since 0.2.0
 */
public interface StreamGuard {
  /**
   * Called when a stream was waited for.
   *
   * @param stream whose work has finished
   * @throws io.moe4j.api.MoeException if some of it was in vain
   */
  void check(DeviceStream stream);

  /**
   * Called when a recording ends.
   *
   * @param stream it was made on, by this thread
   * @return whether it holds work of the guard's; such a graph asks the guard around each launch
   */
  boolean endRecording(DeviceStream stream);

  /**
   * Called before recorded work is launched.
   *
   * @param stream it is launched on
   * @throws io.moe4j.api.MoeException if it would be in vain
   */
  void beforeLaunch(DeviceStream stream);

  /**
   * Called instead of {@link #afterLaunch} where nothing was launched.
   *
   * @param stream the same
   * @param cause why
   */
  default void launchFailed(DeviceStream stream, Throwable cause) {
    afterLaunch(stream);
  }

  /**
   * Called behind a launch.
   *
   * @param stream the same
   */
  void afterLaunch(DeviceStream stream);
}
