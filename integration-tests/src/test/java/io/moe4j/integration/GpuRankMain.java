package io.moe4j.integration;

import io.moe4j.api.comm.CommException;
import io.moe4j.api.comm.Communicator;
import io.moe4j.api.comm.RankInfo;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaDeviceProvider;
import io.moe4j.oracle.BackendCatalog;
import io.moe4j.oracle.Rendezvous;
import java.util.Map;

/**
 * One rank of {@link GpuRanksTest} in a JVM of its own: says {@code forward} after each one,
 * without end, or {@code failed RANK MESSAGE}.
 */
final class GpuRankMain {
  private static final String BACKEND = "triton";

  private GpuRankMain() {}

  public static void main(String[] args) throws Exception {
    RankInfo me = RankInfo.fromEnvironment();
    ParallelConfig rank = ParallelConfig.expert(me.worldSize(), me.rank());
    try (BackendCatalog catalog = BackendCatalog.discover();
        CudaDevice device = new CudaDeviceProvider().open(me.localRank());
        Fixture fixture = Fixture.open("fixtures/qwen3_moe")) {
      MoeConfig config = GpuRanksTest.Part.config(fixture, BACKEND, rank);
      try (Communicator group =
              Rendezvous.join(me, catalog, device, Rendezvous.layers(Map.of(0, config)));
          GpuRanksTest.Part part = new GpuRanksTest.Part(fixture, BACKEND, rank, group, device)) {
        while (true) {
          part.layer.forward(part.request);
          part.read();
          System.out.println("forward");
        }
      }
    } catch (CommException e) {
      System.out.println("failed " + e.rank() + " " + e.getMessage());
    }
  }
}
