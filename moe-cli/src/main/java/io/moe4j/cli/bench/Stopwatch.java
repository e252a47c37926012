package io.moe4j.cli.bench;

import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import java.util.Optional;

/**
 * Times replays by the device's clock; by the host's, from sending them off to their end, where the
 * device has none. Not thread-safe.
 */
final class Stopwatch implements AutoCloseable {
  private final DeviceStream stream;
  private final Optional<Device.Timer> timer;

  Stopwatch(Device device) {
    this.stream = device.defaultStream();
    this.timer = device.newTimer();
  }

  /**
   * {@return microseconds of so many replays, one behind the other}
   *
   * @param graph what is replayed
   * @param replays how many count
   */
  double micros(Device.Graph graph, int replays) {
    if (timer.isEmpty()) {
      long begin = System.nanoTime();
      launch(graph, replays);
      stream.synchronize();
      return (System.nanoTime() - begin) / 1e3;
    }
    Device.Timer t = timer.get();
    // One before the first that counts: the device has work until that arrives.
    launch(graph, 1);
    t.start(stream);
    launch(graph, replays);
    t.stop(stream);
    return t.micros();
  }

  private void launch(Device.Graph graph, int times) {
    for (int i = 0; i < times; i++) {
      graph.launch(stream);
    }
  }

  @Override
  public void close() {
    timer.ifPresent(Device.Timer::close);
  }
}
