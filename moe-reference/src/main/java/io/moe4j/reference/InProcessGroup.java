package io.moe4j.reference;

import io.moe4j.api.comm.AllToAllRows;
import io.moe4j.api.comm.CommException;
import io.moe4j.api.comm.Communicator;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.time.Duration;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.locks.Condition;
import java.util.concurrent.locks.ReentrantLock;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;

/**
 * N ranks as N threads of one JVM: the communicators of one group over host memory. Each call meets
 * twice: once when every rank has shown its tensor, once when every rank has read the others'. The
 * executable description of {@link Communicator}, and good enough to run several ranks on one host.
 *
 * @since 0.2.0
 */
public final class InProcessGroup {
  private final int size;
  private final long deadlineNanos;
  private final ReentrantLock lock = new ReentrantLock();
  private final Condition changed = lock.newCondition();
  private final @Nullable Call[] shown;
  private final boolean[] here;
  private int arrived;
  private long meeting;
  private @Nullable CommException failure;

  /** What a rank brings to a call. */
  private static final class Call {
    final String what;
    final Tensor tensor;
    final long[] rows;

    Call(String what, Tensor tensor, long[] rows) {
      this.what = what;
      this.tensor = tensor;
      this.rows = rows;
    }

    boolean sameShape(Call other) {
      return what.equals(other.what)
          && tensor.dtype() == other.tensor.dtype()
          && (rows.length > 0 || Arrays.equals(tensor.shape(), other.tensor.shape()));
    }
  }

  private InProcessGroup(int size, Duration deadline) {
    this.size = size;
    this.deadlineNanos = deadline.toNanos();
    this.shown = new Call[size];
    this.here = new boolean[size];
  }

  /**
   * Makes a group.
   *
   * @param size ranks, at least 1
   * @param deadline how long a rank waits for the others
   * @return one communicator a rank, each to be used by a thread of its own
   */
  public static List<Communicator> create(int size, Duration deadline) {
    if (size < 1 || deadline.isNegative() || deadline.isZero()) {
      throw new IllegalArgumentException(
          "size is " + size + " and deadline " + deadline + "; both must be positive");
    }
    InProcessGroup group = new InProcessGroup(size, deadline);
    return IntStream.range(0, size).mapToObj(r -> (Communicator) group.new Member(r)).toList();
  }

  /** Waits for all ranks; the last one to come lets all go. */
  private void meet(int rank) {
    lock.lock();
    try {
      requireAlive();
      long mine = meeting;
      here[rank] = true;
      arrived++;
      if (arrived == size) {
        arrived = 0;
        Arrays.fill(here, false);
        meeting++;
        changed.signalAll();
        return;
      }
      long left = deadlineNanos;
      while (mine == meeting && failure == null) {
        if (left <= 0) {
          fail(firstMissing(), "did not come within " + Duration.ofNanos(deadlineNanos), null);
          break;
        }
        left = changed.awaitNanos(left);
      }
      if (mine == meeting) {
        requireAlive();
      }
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      fail(rank, "was interrupted", e);
      requireAlive();
    } finally {
      lock.unlock();
    }
  }

  private int firstMissing() {
    int rank = 0;
    while (here[rank]) {
      rank++;
    }
    return rank;
  }

  private void requireAlive() {
    CommException why = failure;
    if (why != null) {
      throw new CommException(why.rank(), String.valueOf(why.getMessage()), why);
    }
  }

  private void fail(int rank, String what, @Nullable Throwable cause) {
    lock.lock();
    try {
      if (failure == null) {
        failure =
            new CommException(
                rank, "rank " + rank + " of " + size + " in this process " + what, cause);
      }
      changed.signalAll();
    } finally {
      lock.unlock();
    }
  }

  private final class Member implements Communicator {
    private final int rank;

    Member(int rank) {
      this.rank = rank;
    }

    @Override
    public String description() {
      return "in-process";
    }

    @Override
    public int rank() {
      return rank;
    }

    @Override
    public int size() {
      return size;
    }

    @Override
    public DeviceType deviceType() {
      return DeviceType.CPU;
    }

    /** Shows a tensor, waits for those of the others, reads them, waits until all have read. */
    private void exchange(Call call, Runnable read) {
      lock.lock();
      try {
        requireAlive();
        shown[rank] = call;
      } finally {
        lock.unlock();
      }
      meet(rank);
      for (int r = 0; r < size; r++) {
        if (!of(r).sameShape(call)) {
          fail(
              r,
              "calls "
                  + of(r).what
                  + " with "
                  + of(r).tensor
                  + " where rank "
                  + rank
                  + " calls "
                  + call.what
                  + " with "
                  + call.tensor,
              null);
        }
      }
      requireAlive();
      read.run();
      meet(rank);
      lock.lock();
      try {
        shown[rank] = null;
      } finally {
        lock.unlock();
      }
    }

    private Call of(int r) {
      Call call = shown[r];
      if (call == null) {
        throw new CommException(r, "rank " + r + " has left the call", null);
      }
      return call;
    }

    @Override
    public void allGather(Tensor send, Tensor receive, DeviceStream stream) {
      requireRows("receive", receive, send, (long) size * send.size(0));
      exchange(
          new Call("allGather", send, new long[0]),
          () -> {
            long n = send.size(0);
            for (int r = 0; r < size; r++) {
              receive.narrow(0, r * n, n).segment().copyFrom(of(r).tensor.segment());
            }
          });
    }

    @Override
    public void reduceScatter(Tensor send, Tensor receive, DeviceStream stream) {
      requireRows("send", send, receive, (long) size * receive.size(0));
      exchange(
          new Call("reduceScatter", send, new long[0]),
          () -> sum(receive, r -> of(r).tensor.narrow(0, rank * receive.size(0), receive.size(0))));
    }

    @Override
    public void allReduce(Tensor both, DeviceStream stream) {
      DType dtype = both.dtype();
      byte[] sum = new byte[Math.toIntExact(dtype.byteSize(both.elementCount()))];
      Tensor result = Tensor.of(dtype, java.lang.foreign.MemorySegment.ofArray(sum), both.shape());
      exchange(new Call("allReduce", both, new long[0]), () -> sum(result, r -> of(r).tensor));
      both.segment().copyFrom(result.segment());
    }

    private void sum(Tensor into, java.util.function.IntFunction<Tensor> part) {
      float[] total = new float[Math.toIntExact(into.elementCount())];
      for (int r = 0; r < size; r++) {
        float[] values = part.apply(r).toFloats();
        for (int i = 0; i < total.length; i++) {
          total[i] += values[i];
        }
      }
      Tensor flat = into.reshape(total.length);
      for (int i = 0; i < total.length; i++) {
        flat.set(total[i], i);
      }
    }

    @Override
    public void allToAll(
        Tensor send, long[] sendRows, Tensor receive, long[] receiveRows, DeviceStream stream) {
      AllToAllRows.of(rank, size, send, sendRows, receive, receiveRows);
      exchange(
          new Call("allToAll", send, sendRows.clone()),
          () -> {
            long at = 0;
            for (int r = 0; r < size; r++) {
              Call theirs = of(r);
              long rows = theirs.rows[rank];
              if (rows != receiveRows[r]) {
                fail(
                    r,
                    "sends " + rows + " rows where rank " + rank + " expects " + receiveRows[r],
                    null);
                requireAlive();
              }
              long from = Arrays.stream(theirs.rows, 0, rank).sum();
              receive
                  .narrow(0, at, rows)
                  .segment()
                  .copyFrom(theirs.tensor.narrow(0, from, rows).segment());
              at += rows;
            }
          });
    }

    private void requireRows(String name, Tensor t, Tensor like, long rows) {
      long[] shape = like.shape();
      shape[0] = rows;
      if (t.dtype() != like.dtype() || !Arrays.equals(t.shape(), shape)) {
        throw new IllegalArgumentException(
            name + " is " + t + ", must be " + like.dtype() + Arrays.toString(shape));
      }
    }

    @Override
    public void abort(Throwable cause) {
      fail(rank, "aborted: " + cause, cause);
    }

    @Override
    public void close() {
      fail(rank, "has left the group", null);
    }
  }
}
