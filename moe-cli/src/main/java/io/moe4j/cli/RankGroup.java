package io.moe4j.cli;

import io.moe4j.api.comm.Communicator;
import io.moe4j.api.device.Device;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.Arena;

/**
 * The ranks of {@code moe run}, for tensors on the host: what they tell each other goes by the
 * layers' communicator, through memory of the device.
 *
 * @param communicator of all ranks; stays the caller's
 * @param device of this rank; stays the caller's
 */
record RankGroup(Communicator communicator, Device device) {
  /** {@return what every rank says, {@code [ranks, values]}} */
  Tensor all(float... mine) {
    int ranks = communicator.size();
    try (Staging staging = new Staging(device, Arena.ofAuto())) {
      Tensor sent = staging.put(Tensor.ofFloats(mine, 1, mine.length));
      Tensor there =
          staging.put(Tensor.ofFloats(new float[ranks * mine.length], ranks, mine.length));
      communicator.allGather(sent, there, device.defaultStream());
      return staging.toHost(there);
    }
  }

  /**
   * Every rank's rows to rank 0.
   *
   * @param mine {@code [rows of this rank, columns]}
   * @param rows by rank
   * @return all rows on rank 0, none elsewhere
   */
  Tensor onFirst(Tensor mine, long[] rows) {
    boolean first = communicator.rank() == 0;
    long[] send = new long[rows.length];
    send[0] = mine.size(0);
    long[] receive = first ? rows.clone() : new long[rows.length];
    long total = 0;
    for (long n : receive) {
      total += n;
    }
    try (Staging staging = new Staging(device, Arena.ofAuto())) {
      Tensor sent = staging.put(mine);
      Tensor there = staging.empty(mine.dtype(), total, mine.size(1));
      communicator.allToAll(sent, send, there, receive, device.defaultStream());
      return staging.toHost(there);
    }
  }
}
