package io.moe4j.comm.tcp;

import io.moe4j.api.comm.CommConfig;
import io.moe4j.api.comm.CommException;
import io.moe4j.api.comm.Communicator;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.reference.HostDevice;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

/** Ranks of one JVM, over loopback all the same. */
final class TcpGroup {
  static final Device HOST = new HostDevice(DeviceInfo.of(DeviceId.CPU, "host"));

  private TcpGroup() {}

  static List<Communicator> open(int size, Duration deadline) {
    TcpCommProvider provider = new TcpCommProvider();
    String group = provider.newGroup();
    List<Callable<Communicator>> ranks = new ArrayList<>();
    for (int r = 0; r < size; r++) {
      CommConfig config = new CommConfig(group, r, size, deadline);
      ranks.add(() -> provider.open(config, HOST));
    }
    return together(ranks).stream().map(TcpGroup::get).toList();
  }

  /** All at once; each has ended when this returns. */
  static <T> List<Future<T>> together(List<Callable<T>> ranks) {
    try (ExecutorService threads = Executors.newFixedThreadPool(ranks.size())) {
      return ranks.stream().map(threads::submit).toList();
    }
  }

  static <T> T get(Future<T> ended) {
    try {
      return ended.get();
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new IllegalStateException(e);
    } catch (ExecutionException e) {
      if (e.getCause() instanceof CommException c) {
        throw c;
      }
      throw new IllegalStateException(e.getCause());
    }
  }
}
