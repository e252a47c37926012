package io.moe4j.cli.bench;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import java.lang.reflect.Proxy;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import org.junit.jupiter.api.Test;

class StopwatchTest {
  private final List<String> calls = new ArrayList<>();

  private final Device.Timer timer =
      new Device.Timer() {
        @Override
        public void start(DeviceStream stream) {
          calls.add("start");
        }

        @Override
        public void stop(DeviceStream stream) {
          calls.add("stop");
        }

        @Override
        public double micros() {
          return 42;
        }

        @Override
        public void close() {
          calls.add("close");
        }
      };

  private final Device.Graph graph =
      new Device.Graph() {
        @Override
        public void launch(DeviceStream stream) {
          calls.add("replay");
        }

        @Override
        public void close() {}
      };

  private Device device(Optional<Device.Timer> clock) {
    return (Device)
        Proxy.newProxyInstance(
            Device.class.getClassLoader(),
            new Class<?>[] {Device.class},
            (proxy, method, args) ->
                switch (method.getName()) {
                  case "defaultStream" -> DeviceStream.HOST;
                  case "newTimer" -> clock;
                  default -> throw new AssertionError(method);
                });
  }

  @Test
  void theDevicesClockStartsBehindAReplayThatDoesNotCount() {
    try (Stopwatch watch = new Stopwatch(device(Optional.of(timer)))) {
      assertThat(watch.micros(graph, 2)).isEqualTo(42);
    }
    assertThat(calls).containsExactly("replay", "start", "replay", "replay", "stop", "close");
  }

  @Test
  void withoutOneTheHostsServes() {
    try (Stopwatch watch = new Stopwatch(device(Optional.empty()))) {
      assertThat(watch.micros(graph, 3)).isPositive();
    }
    assertThat(calls).containsExactly("replay", "replay", "replay");
  }
}
