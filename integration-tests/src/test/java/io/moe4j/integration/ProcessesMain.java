package io.moe4j.integration;

import io.moe4j.api.comm.CommException;
import io.moe4j.api.comm.Communicator;
import io.moe4j.api.comm.RankInfo;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.backend.cpu.CpuDeviceProvider;
import io.moe4j.oracle.BackendCatalog;
import io.moe4j.oracle.Rendezvous;
import java.util.HexFormat;
import java.util.Map;

/**
 * One rank of {@link ProcessesTest}: says {@code result HEX} of its own tokens, or {@code failed
 * RANK MESSAGE}.
 */
final class ProcessesMain {
  private ProcessesMain() {}

  /**
   * @param args {@code die} for the last rank to end without a word after two forwards, or {@code
   *     differ} for ranks whose configs do
   */
  public static void main(String[] args) throws Exception {
    RankInfo me = RankInfo.fromEnvironment();
    RankedLayer model = new RankedLayer();
    MoeConfig config =
        RankedLayer.config()
            .parallel(ParallelConfig.expert(me.worldSize(), me.rank()))
            .maxTokens(args[0].equals("differ") ? 32 + me.rank() : 32)
            .build();
    try (BackendCatalog catalog = BackendCatalog.discover();
        Device device = new CpuDeviceProvider().open(0);
        Communicator group =
            Rendezvous.join(me, catalog, device, Rendezvous.layers(Map.of(0, config)))) {
      Tensor[] hidden = model.hidden(me.worldSize());
      for (int round = 0; round < 3; round++) {
        if (args[0].equals("die") && round == 2 && me.rank() == me.worldSize() - 1) {
          Runtime.getRuntime().halt(9);
        }
        Tensor output = model.run(config, group, hidden[me.rank()], RankedLayer.names(me.rank()));
        byte[] bits = output.segment().toArray(java.lang.foreign.ValueLayout.JAVA_BYTE);
        System.out.println("result " + HexFormat.of().formatHex(bits));
      }
    } catch (CommException e) {
      System.out.println("failed " + e.rank() + " " + e.getMessage());
    }
  }
}
