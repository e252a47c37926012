package io.moe4j.comm.nccl;

import io.moe4j.api.comm.CommConfig;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

/** Ranks over the stand-in, each on a card of its own, threads of this JVM. */
final class HostGroup {
  /** One of them. */
  record Rank(NcclCommunicator communicator, HostCard card) {}

  private HostGroup() {}

  static List<Rank> open(int size, Duration deadline) {
    NcclCommProvider provider = Standin.provider();
    String group = provider.newGroup();
    List<Future<Rank>> coming = new ArrayList<>();
    try (ExecutorService threads = Executors.newVirtualThreadPerTaskExecutor()) {
      for (int r = 0; r < size; r++) {
        HostCard card = new HostCard(r);
        CommConfig config = new CommConfig(group, r, size, deadline);
        Callable<Rank> join = () -> new Rank(provider.openOn(card, config), card);
        coming.add(threads.submit(join));
      }
      List<Rank> ranks = new ArrayList<>();
      for (Future<Rank> rank : coming) {
        ranks.add(rank.get());
      }
      return ranks;
    } catch (ExecutionException e) {
      throw new AssertionError(e.getCause());
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new IllegalStateException(e);
    }
  }
}
