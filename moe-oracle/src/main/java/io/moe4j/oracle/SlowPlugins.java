package io.moe4j.oracle;

import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ScheduledFuture;
import java.util.concurrent.TimeUnit;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Says who is being waited for when a plugin takes long to answer: a command that is silent for
 * half a minute looks broken, and nobody could tell which jar it is.
 */
final class SlowPlugins implements AutoCloseable {
  private static final Logger LOG = LoggerFactory.getLogger(SlowPlugins.class);
  private static final long SECONDS = 2;

  private static final class Holder {
    static final ScheduledExecutorService CLOCK =
        Executors.newSingleThreadScheduledExecutor(
            task -> Thread.ofPlatform().daemon(true).name("moe4j-slow-plugins").unstarted(task));
  }

  private final ScheduledFuture<?> warning;

  private SlowPlugins(ScheduledFuture<?> warning) {
    this.warning = warning;
  }

  static SlowPlugins watch(String who) {
    return new SlowPlugins(
        Holder.CLOCK.scheduleAtFixedRate(
            () -> LOG.warn("Still waiting for plugin {}", Printable.line(who)),
            SECONDS,
            5 * SECONDS,
            TimeUnit.SECONDS));
  }

  @Override
  public void close() {
    warning.cancel(false);
  }
}
