package io.moe4j.comm.tcp;

import io.moe4j.api.comm.AllToAllRows;
import io.moe4j.api.comm.CommConfig;
import io.moe4j.api.comm.CommException;
import io.moe4j.api.comm.Communicator;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.channels.Selector;
import java.nio.channels.SocketChannel;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;
import java.util.concurrent.locks.ReentrantLock;
import org.jspecify.annotations.Nullable;

/**
 * One rank of a group over TCP. The calling thread serves all connections with a selector; nothing
 * runs in the background. A rank that sends and takes nothing for the deadline ends the group, and
 * so does one whose connection closes.
 */
final class TcpCommunicator implements Communicator {
  private static final long FAREWELL_NANOS = TimeUnit.SECONDS.toNanos(1);

  private final CommConfig config;
  private final int rank;
  private final int size;
  private final Selector selector;
  private final List<Peer> peers = new ArrayList<>();
  private final HostSums sums = new HostSums();
  private final ReentrantLock busy = new ReentrantLock();
  private final AtomicReference<@Nullable CommException> failure = new AtomicReference<>();
  private @Nullable Arena scratchArena;
  private MemorySegment scratch = MemorySegment.NULL;
  private long calls;
  private boolean told;
  private volatile boolean closed;

  TcpCommunicator(CommConfig config, @Nullable SocketChannel[] channels) {
    this.config = config;
    this.rank = config.rank();
    this.size = config.size();
    Selector opened = null;
    try {
      opened = Selector.open();
      Call none = Call.of(-1, Call.Op.ALL_GATHER, Tensor.ofInts(new int[0], 0));
      for (int r = 0; r < size; r++) {
        SocketChannel c = channels[r];
        if (c != null) {
          peers.add(new Peer(r, c, opened, none));
        }
      }
    } catch (IOException e) {
      for (SocketChannel c : channels) {
        Mesh.closeQuietly(c);
      }
      throw new CommException(rank, "rank " + rank + " of " + size + " failed: " + e, e);
    }
    this.selector = opened;
  }

  @Override
  public String description() {
    return "tcp";
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

  /** What goes to a rank, or comes from one. */
  private interface Part {
    MemorySegment of(int rank);
  }

  @Override
  public void allGather(Tensor send, Tensor receive, DeviceStream stream) {
    long n = send.size(0);
    requireRows("receive", receive, send, Math.multiplyExact(n, size));
    MemorySegment mine = send.segment();
    busy.lock();
    try {
      exchange(
          Call.of(calls, Call.Op.ALL_GATHER, send),
          r -> mine,
          r -> receive.narrow(0, r * n, n).segment());
      receive.narrow(0, rank * n, n).segment().copyFrom(mine);
    } finally {
      busy.unlock();
    }
  }

  @Override
  public void reduceScatter(Tensor send, Tensor receive, DeviceStream stream) {
    long n = receive.size(0);
    requireRows("send", send, receive, Math.multiplyExact(n, size));
    requireSummable("send", send);
    busy.lock();
    try {
      MemorySegment[] parts = parts(receive.segment().byteSize());
      parts[rank] = send.narrow(0, rank * n, n).segment();
      exchange(
          Call.of(calls, Call.Op.REDUCE_SCATTER, send),
          r -> send.narrow(0, r * n, n).segment(),
          r -> parts[r]);
      sums.sum(send.dtype(), parts, receive.segment());
    } finally {
      busy.unlock();
    }
  }

  /** Each rank sums one part and hands it to the others: every value goes out and back once. */
  @Override
  public void allReduce(Tensor both, DeviceStream stream) {
    requireSummable("both", both);
    MemorySegment all = both.segment();
    DType dtype = both.dtype();
    long width = dtype.byteSize(1);
    long n = both.elementCount();
    Part part =
        r -> {
          long from = n * r / size;
          return all.asSlice(from * width, (n * (r + 1) / size - from) * width);
        };
    busy.lock();
    try {
      MemorySegment mine = part.of(rank);
      MemorySegment[] parts = parts(mine.byteSize());
      parts[rank] = mine;
      exchange(Call.of(calls, Call.Op.ALL_REDUCE, both), part, r -> parts[r]);
      sums.sum(dtype, parts, mine);
      exchange(Call.of(calls, Call.Op.ALL_REDUCE, both), r -> mine, part);
    } finally {
      busy.unlock();
    }
  }

  @Override
  public void allToAll(
      Tensor send, long[] sendRows, Tensor receive, long[] receiveRows, DeviceStream stream) {
    AllToAllRows rows = AllToAllRows.of(rank, size, send, sendRows, receive, receiveRows);
    busy.lock();
    try {
      exchange(
          Call.of(calls, Call.Op.ALL_TO_ALL, send),
          sendRows,
          receiveRows,
          r -> send.narrow(0, rows.sendFrom(r), sendRows[r]).segment(),
          r -> receive.narrow(0, rows.receiveFrom(r), receiveRows[r]).segment());
      receive
          .narrow(0, rows.receiveFrom(rank), receiveRows[rank])
          .segment()
          .copyFrom(send.narrow(0, rows.sendFrom(rank), sendRows[rank]).segment());
    } finally {
      busy.unlock();
    }
  }

  private static void requireRows(String name, Tensor t, Tensor like, long rows) {
    long[] shape = like.shape();
    shape[0] = rows;
    if (t.dtype() != like.dtype() || !Arrays.equals(t.shape(), shape)) {
      throw new IllegalArgumentException(
          name + " is " + t + ", must be " + like.dtype() + Arrays.toString(shape));
    }
  }

  private static void requireSummable(String name, Tensor t) {
    if (!HostSums.takes(t.dtype())) {
      throw new IllegalArgumentException(name + " is " + t + ", must be F32, BF16 or F16");
    }
  }

  /** Room for one part of each other rank. */
  private MemorySegment[] parts(long bytes) {
    long stride = (bytes + 63) / 64 * 64;
    long needed = stride * (size - 1);
    if (scratch.byteSize() < needed) {
      freeScratch();
      Arena arena = Arena.ofShared();
      scratchArena = arena;
      scratch = arena.allocate(needed, 64);
    }
    MemorySegment[] parts = new MemorySegment[size];
    int next = 0;
    for (int r = 0; r < size; r++) {
      parts[r] = r == rank ? MemorySegment.NULL : scratch.asSlice(stride * next++, bytes);
    }
    return parts;
  }

  private void freeScratch() {
    if (scratchArena != null) {
      scratchArena.close();
      scratchArena = null;
      scratch = MemorySegment.NULL;
    }
  }

  private void exchange(Call call, Part send, Part receive) {
    long[] none = new long[size];
    exchange(call, none, none, send, receive);
  }

  private void exchange(Call call, long[] sendRows, long[] receiveRows, Part send, Part receive) {
    requireAlive();
    calls++;
    try {
      for (Peer p : peers) {
        p.begin(
            call.withRows(sendRows[p.rank]),
            send.of(p.rank),
            receive.of(p.rank),
            receiveRows[p.rank]);
      }
      while (!allDone()) {
        selector.select(p -> serve((Peer) p.attachment()), waitMillis());
        if (Thread.interrupted()) {
          Thread.currentThread().interrupt();
          throw fail(rank, me() + " was interrupted", null);
        }
        requireAlive();
        requireProgress();
      }
    } catch (Peer.Ended e) {
      throw ended(e);
    } catch (IOException e) {
      throw fail(rank, me() + " failed: " + e, e);
    } catch (CommException e) {
      farewell();
      throw e;
    }
  }

  private void serve(Peer p) {
    try {
      p.advance();
    } catch (Peer.Ended e) {
      throw ended(e);
    }
  }

  private boolean allDone() {
    for (Peer p : peers) {
      if (!p.isDone()) {
        return false;
      }
    }
    return true;
  }

  private long waitMillis() {
    long now = System.nanoTime();
    long left = config.deadline().toNanos();
    for (Peer p : peers) {
      if (!p.isDone()) {
        left = Math.min(left, p.lastProgress + config.deadline().toNanos() - now);
      }
    }
    return Math.max(1, TimeUnit.NANOSECONDS.toMillis(left) + 1);
  }

  /** Of several ranks that are late, one from which something is missing is named. */
  private void requireProgress() {
    long now = System.nanoTime();
    Peer late = null;
    for (Peer p : peers) {
      if (!p.isDone() && now - p.lastProgress >= config.deadline().toNanos()) {
        if (late == null || (late.hasReceived() && !p.hasReceived())) {
          late = p;
        }
      }
    }
    if (late != null) {
      throw fail(late.rank, who(late) + " did not come within " + config.deadline(), null);
    }
  }

  private String me() {
    return "rank " + rank + " of " + size;
  }

  private String who(Peer p) {
    return "rank " + p.rank + " of " + size + " at " + p.address;
  }

  private CommException ended(Peer.Ended e) {
    String words = String.valueOf(e.getMessage());
    if (!e.told) {
      for (Peer p : peers) {
        if (p.rank == e.rank) {
          words = who(p) + " " + words;
        }
      }
    }
    return fail(e.rank, words, e.getCause());
  }

  /** The first failure is the group's; it is told to every rank. */
  private CommException fail(int blamed, String message, @Nullable Throwable cause) {
    failure.compareAndSet(null, new CommException(blamed, message, cause));
    farewell();
    CommException first = failure.get();
    return first == null ? new CommException(blamed, message, cause) : first;
  }

  private void requireAlive() {
    CommException why = failure.get();
    if (why != null) {
      throw new CommException(why.rank(), String.valueOf(why.getMessage()), why);
    }
  }

  /** Says why, or only that this rank leaves, and shuts the door; holds the lock. */
  private void farewell() {
    if (told) {
      return;
    }
    told = true;
    CommException why = failure.get();
    for (Peer p : peers) {
      if (why == null) {
        p.sayBye();
      } else {
        p.tell(why.rank(), String.valueOf(why.getMessage()));
      }
    }
    untilAll(Peer::flush);
    peers.forEach(Peer::finish);
  }

  private void untilAll(java.util.function.Predicate<Peer> done) {
    List<Peer> open = new ArrayList<>(peers);
    long end = System.nanoTime() + FAREWELL_NANOS;
    while (true) {
      open.removeIf(done);
      if (open.isEmpty() || System.nanoTime() - end > 0 || Thread.currentThread().isInterrupted()) {
        return;
      }
      try {
        Thread.sleep(1);
      } catch (InterruptedException e) {
        Thread.currentThread().interrupt();
      }
    }
  }

  @Override
  public void abort(Throwable cause) {
    failure.compareAndSet(null, new CommException(rank, me() + " aborted: " + cause, cause));
    if (closed) {
      return;
    }
    selector.wakeup(); // a thread that is in a call tells the others itself
    try {
      if (busy.tryLock(FAREWELL_NANOS, TimeUnit.NANOSECONDS)) {
        try {
          farewell();
        } finally {
          busy.unlock();
        }
      }
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
  }

  @Override
  public void close() {
    busy.lock();
    try {
      if (closed) {
        return;
      }
      closed = true;
      farewell();
      failure.compareAndSet(null, new CommException(rank, me() + " has left the group", null));
      // Closing with something unread would take back what the others have not read yet.
      untilAll(Peer::drain);
      peers.forEach(Peer::close);
      freeScratch();
      try {
        selector.close();
      } catch (IOException e) {
        // its channels are closed, nothing is lost with it
      }
    } finally {
      busy.unlock();
    }
  }
}
