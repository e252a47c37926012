package io.moe4j.comm.nccl;

import static org.junit.jupiter.api.Assumptions.assumeTrue;

import io.moe4j.api.comm.CommConfig;
import io.moe4j.api.comm.CommException;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaDeviceProvider;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

/**
 * Two ranks of this JVM that write into each other's memory: a card each; both on one card where
 * {@value #ONE_CARD} is set, which NCCL itself refuses and its stand-in does not.
 */
final class PeerRanks {
  static final int RANKS = 2;

  private static final String ONE_CARD = "moe4j.test.ranks.one-card";

  private PeerRanks() {}

  /** What one rank does. */
  interface Work {
    Object on(NcclCommunicator mine, CudaDevice device) throws Exception;
  }

  /**
   * {@return what each rank answered, or the {@link CommException} that ended it}
   *
   * @param deadline of the group
   * @param work of each rank, on a thread of its own; what else it throws ends the group
   */
  static List<Object> run(Duration deadline, Work work) throws Exception {
    int cards = new CudaDeviceProvider().probe().devices().size();
    assumeTrue(cards >= RANKS || Boolean.getBoolean(ONE_CARD), "skipped: needs two cards");
    assumeTrue(NcclLibrary.Installed.HERE.reason().isEmpty(), "skipped: no NCCL");
    NcclCommProvider nccl = new NcclCommProvider();
    String group = nccl.newGroup();
    List<Future<Object>> running = new ArrayList<>();
    List<Object> answers = new ArrayList<>();
    try (ExecutorService threads = Executors.newFixedThreadPool(RANKS)) {
      for (int r = 0; r < RANKS; r++) {
        int rank = r;
        running.add(
            threads.submit(() -> {
              CommConfig config = new CommConfig(group, rank, RANKS, deadline);
              try (CudaDevice device = new CudaDeviceProvider().open(cards >= RANKS ? rank : 0);
                  NcclCommunicator mine = (NcclCommunicator) nccl.open(config, device)) {
                try {
                  return work.on(mine, device);
                } catch (CommException e) {
                  return e;
                } catch (Throwable e) {
                  mine.abort(e);
                  throw e;
                }
              }
            }));
      }
      for (Future<Object> f : running) {
        answers.add(f.get());
      }
    } catch (ExecutionException e) {
      throw e.getCause() instanceof Exception cause ? cause : e;
    }
    return answers;
  }
}
