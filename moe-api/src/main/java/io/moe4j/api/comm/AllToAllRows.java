package io.moe4j.api.comm;

import io.moe4j.api.tensor.Tensor;
import java.util.Arrays;

/**
 * The arguments of one {@link Communicator#allToAll}, checked, and where in the tensors the rows of
 * each rank begin: what implementations share. Immutable.
 *
 * @since 0.2.0
 */
public final class AllToAllRows {
  private final long[] sendFrom;
  private final long[] receiveFrom;

  private AllToAllRows(long[] sendFrom, long[] receiveFrom) {
    this.sendFrom = sendFrom;
    this.receiveFrom = receiveFrom;
  }

  /**
   * Checks.
   *
   * @param rank this one
   * @param size ranks
   * @param send rows for all ranks, in their order
   * @param sendRows how many of them go to each
   * @param receive of the same dtype and shape of rows, with room for all that come
   * @param receiveRows how many come from each
   * @return where rows begin
   * @throws IllegalArgumentException naming the argument, what was given, what is accepted
   */
  public static AllToAllRows of(
      int rank, int size, Tensor send, long[] sendRows, Tensor receive, long[] receiveRows) {
    if (rank < 0 || rank >= size) {
      throw new IllegalArgumentException("rank is " + rank + ", must be 0.." + (size - 1));
    }
    if (send.dims() == 0 || receive.dims() == 0) {
      throw new IllegalArgumentException(
          "send is " + send + " and receive " + receive + ", must have rows");
    }
    long[] sendFrom = starts("sendRows", sendRows, size);
    long[] receiveFrom = starts("receiveRows", receiveRows, size);
    long[] rows = send.shape();
    rows[0] = receive.size(0);
    if (send.dtype() != receive.dtype()
        || !Arrays.equals(rows, receive.shape())
        || send.size(0) != sendFrom[size]
        || receive.size(0) < receiveFrom[size]) {
      throw new IllegalArgumentException(
          "send is "
              + send
              + " and receive "
              + receive
              + ", must be of one dtype with rows of one shape, "
              + sendFrom[size]
              + " and at least "
              + receiveFrom[size]
              + " of them");
    }
    if (sendRows[rank] != receiveRows[rank]) {
      throw new IllegalArgumentException(
          "rank "
              + rank
              + " sends itself "
              + sendRows[rank]
              + " rows and expects "
              + receiveRows[rank]);
    }
    return new AllToAllRows(sendFrom, receiveFrom);
  }

  private static long[] starts(String name, long[] rows, int size) {
    if (rows.length != size) {
      throw new IllegalArgumentException(
          name + " has " + rows.length + " entries, must have one for each of " + size + " ranks");
    }
    long[] from = new long[size + 1];
    for (int r = 0; r < size; r++) {
      if (rows[r] < 0) {
        throw new IllegalArgumentException(
            name + "[" + r + "] is " + rows[r] + ", must not be negative");
      }
      from[r + 1] = Math.addExact(from[r], rows[r]);
    }
    return from;
  }

  /**
   * {@return the first row of {@code send} for a rank}
   *
   * @param rank from 0 to the number of ranks, which gives the number of rows
   */
  public long sendFrom(int rank) {
    return sendFrom[rank];
  }

  /**
   * {@return the first row of {@code receive} for a rank}
   *
   * @param rank from 0 to the number of ranks, which gives the number of rows
   */
  public long receiveFrom(int rank) {
    return receiveFrom[rank];
  }
}
