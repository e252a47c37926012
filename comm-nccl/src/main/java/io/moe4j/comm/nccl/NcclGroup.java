package io.moe4j.comm.nccl;

import io.moe4j.api.comm.CommConfig;
import io.moe4j.api.comm.CommException;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.comm.nccl.ffi.NcclFfi;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicReference;
import java.util.concurrent.locks.LockSupport;
import java.util.concurrent.locks.ReentrantLock;
import org.jspecify.annotations.Nullable;

/**
 * The life of NCCL's communicator: joined without blocking, watched by a thread of its own, ended
 * once. The thread polls {@code ncclCommGetAsyncError} and looks whether the stream has been in one
 * call for longer than the deadline; then it asks {@link Control} who is to blame and aborts, which
 * makes the kernels of the call return and gives NCCL's memory back. So whoever waits for the
 * stream goes on, and hears of it by {@link NcclCommunicator#check}.
 */
final class NcclGroup implements Control.Owner {
  private static final long POLL_NANOS = TimeUnit.MICROSECONDS.toNanos(20);
  private static final long BUSY_MILLIS = 5;
  private static final long IDLE_MILLIS = 100;
  private static final long LOCK_MILLIS = 1000;
  private static final long SETTLE_NANOS = TimeUnit.SECONDS.toNanos(1);

  private final NcclVersion version;
  private final CommConfig config;
  private final Card card;
  private final @Nullable Control control;
  private final CallLog log = new CallLog();
  private final Marks marks;

  /** NCCL's words for two ranks on one GPU. */
  private static final String DUPLICATE = "Duplicate GPU";

  private static final String ADVICE =
      ": give each process a GPU of its own, by CUDA_VISIBLE_DEVICES or by starting as many"
          + " processes as the host has GPUs";

  private final Arena arena = Arena.ofShared();
  private final MemorySegment slot = arena.allocate(ValueLayout.ADDRESS);

  /** One thread in NCCL at a time, and none once the communicator is gone. */
  private final ReentrantLock inNccl = new ReentrantLock();

  private MemorySegment comm = MemorySegment.NULL;
  private final AtomicReference<@Nullable CommException> failure = new AtomicReference<>();
  private final AtomicBoolean closed = new AtomicBoolean();

  /** Run when the group fails: releases kernels of ours that wait for other ranks. */
  private final List<Runnable> endings = new CopyOnWriteArrayList<>();

  private final Thread watch;
  private final AtomicBoolean stop = new AtomicBoolean();

  NcclGroup(NcclVersion version, CommConfig config, Card card, @Nullable Control control) {
    this.version = version;
    this.config = config;
    this.card = card;
    this.control = control;
    this.marks = new Marks(card);
    this.watch =
        Thread.ofPlatform().daemon().name("nccl-watch-" + config.rank()).unstarted(this::watch);
  }

  /** Joins; returns when all ranks have. */
  void join(byte[] id) {
    if (control != null) {
      control.start(this);
    }
    watch.start();
    card.makeCurrent();
    int result;
    inNccl.lock();
    try {
      result = Nccl.init(slot, config.size(), id, config.rank(), version);
      comm = slot.get(ValueLayout.ADDRESS, 0);
    } finally {
      inNccl.unlock();
    }
    settle("ncclCommInitRankConfig", result);
  }

  private String me() {
    return "rank " + config.rank() + " of " + config.size();
  }

  @Override
  public CallLog log() {
    return log;
  }

  @Override
  public void ended(CommException why) {
    if (failure.compareAndSet(null, why)) {
      endings.forEach(Runnable::run);
    }
    LockSupport.unpark(watch);
  }

  /** The first failure is the group's. */
  void fail(CommException why) {
    if (failure.compareAndSet(null, why)) {
      endings.forEach(Runnable::run);
      if (control != null) {
        control.fail(why);
      }
    }
    LockSupport.unpark(watch);
  }

  /** Also runs it at once where the group has failed already; may run it twice. */
  void whenFailed(Runnable ending) {
    endings.add(ending);
    if (failure.get() != null) {
      ending.run();
    }
  }

  Duration deadline() {
    return config.deadline();
  }

  CommException failed(CommException why) {
    fail(why);
    CommException first = failure.get();
    return first == null ? why : first;
  }

  /**
   * Says why the group has ended.
   *
   * @throws CommException if it has
   */
  void requireAlive() {
    CommException why = failure.get();
    if (why != null) {
      throw new CommException(why.rank(), String.valueOf(why.getMessage()), why);
    }
  }

  /** Counts a call, and marks the stream before it, unless it is only recorded. */
  Marks.@Nullable Call begin(String what, DeviceStream stream, boolean records) {
    requireAlive();
    card.makeCurrent();
    long number = log.begin(what);
    return records ? null : marks.begin(number, what, stream);
  }

  /** Work inside NCCL. */
  interface Work {
    int on(MemorySegment comm);
  }

  /** Enqueues; waits only where NCCL has first to connect to other ranks. */
  void run(String what, Work work) {
    int result;
    inNccl.lock();
    try {
      requireAlive();
      result = work.on(comm);
    } finally {
      inNccl.unlock();
    }
    settle(what, result);
  }

  private void settle(String what, int begun) {
    int result = begun;
    long start = System.nanoTime();
    while (Nccl.isInProgress(result)) {
      requireAlive();
      if (System.nanoTime() - start > config.deadline().toNanos()) {
        throw failed(late(log.made(), what));
      }
      if (Thread.interrupted()) {
        Thread.currentThread().interrupt();
        throw failed(new CommException(config.rank(), me() + " was interrupted", null));
      }
      LockSupport.parkNanos(POLL_NANOS);
      result = state();
    }
    if (!Nccl.isSuccess(result)) {
      throw failed(refused(what, result));
    }
  }

  private CommException refused(String what, int result) {
    inNccl.lock();
    try {
      String words = Nccl.words(result, comm);
      String advice = words.contains(DUPLICATE) ? ADVICE : "";
      return new CommException(config.rank(), me() + ", " + what + ": " + words + advice, null);
    } finally {
      inNccl.unlock();
    }
  }

  private int state() {
    inNccl.lock();
    try {
      requireAlive();
      return Nccl.state(comm);
    } finally {
      inNccl.unlock();
    }
  }

  private CommException late(long number, String what) {
    return control == null
        ? new CommException(
            config.rank(),
            "call "
                + number
                + " ("
                + what
                + ") of "
                + me()
                + " has not finished within "
                + config.deadline(),
            null)
        : control.blame(number, what);
  }

  private void watch() {
    while (!stop.get()) {
      if (failure.get() != null) {
        abortNccl();
        return;
      }
      boolean busy = false;
      try {
        busy = look();
      } catch (RuntimeException e) { // an event cannot be asked: the device is broken
        fail(new CommException(config.rank(), me() + " failed: " + e, e));
      }
      if (failure.get() == null) {
        LockSupport.parkNanos(TimeUnit.MILLISECONDS.toNanos(busy ? BUSY_MILLIS : IDLE_MILLIS));
      }
    }
  }

  /** {@return whether a call is under way} */
  private boolean look() {
    Marks.Call call = marks.current();
    if (call == null) {
      return false;
    }
    if (marks.nanosAt(call) > config.deadline().toNanos()) {
      fail(late(call.number, call.what));
      return true;
    }
    if (inNccl.tryLock()) {
      int result;
      try {
        if (comm.address() == 0) {
          return true;
        }
        result = Nccl.state(comm);
      } finally {
        inNccl.unlock();
      }
      if (!Nccl.isSuccess(result) && !Nccl.isInProgress(result)) {
        fail(refused(call.what, result));
      }
    }
    return true;
  }

  /**
   * Has an effect once. A thread that is stuck in NCCL behind a full stream is freed by the abort
   * itself.
   */
  private void abortNccl() {
    boolean locked = false;
    try {
      locked = inNccl.tryLock(LOCK_MILLIS, TimeUnit.MILLISECONDS);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
    try {
      MemorySegment mine = comm;
      comm = MemorySegment.NULL;
      if (mine.address() != 0) {
        card.makeCurrent();
        NcclFfi.ncclCommAbort(mine);
      }
    } finally {
      if (locked) {
        inNccl.unlock();
      }
    }
  }

  /** Leaves, once what was enqueued has finished. */
  void close() {
    if (!closed.compareAndSet(false, true)) {
      return;
    }
    if (watch.getState() != Thread.State.NEW) {
      finish();
      stop.set(true);
      LockSupport.unpark(watch);
      joinWatch();
      abortNccl(); // of a group that ended while this rank was still joining
      settleMarks();
    }
    if (control != null) {
      control.close();
    }
    failure.compareAndSet(
        null, new CommException(config.rank(), me() + " has left the group", null));
    marks.close();
    arena.close();
  }

  /** Kernels that were waiting for other ranks return soon after the group has failed. */
  private void settleMarks() {
    long start = System.nanoTime();
    try {
      while (marks.current() != null && System.nanoTime() - start < SETTLE_NANOS) {
        LockSupport.parkNanos(POLL_NANOS);
      }
    } catch (RuntimeException e) {
      // the device is broken: nothing runs there any more
    }
  }

  private void joinWatch() {
    boolean interrupted = false;
    while (watch.isAlive()) {
      try {
        watch.join();
      } catch (InterruptedException e) {
        interrupted = true;
      }
    }
    if (interrupted) {
      Thread.currentThread().interrupt();
    }
  }

  private void finish() {
    try {
      while (failure.get() == null && marks.current() != null) {
        LockSupport.parkNanos(POLL_NANOS);
      }
      if (failure.get() != null || comm.address() == 0) {
        return; // the watch aborts
      }
      card.makeCurrent();
      run("ncclCommFinalize", NcclFfi::ncclCommFinalize);
      inNccl.lock();
      try {
        MemorySegment mine = comm;
        comm = MemorySegment.NULL;
        if (mine.address() != 0) {
          NcclFfi.ncclCommDestroy(mine);
        }
      } finally {
        inNccl.unlock();
      }
    } catch (CommException e) {
      // it has failed on the way out: the watch aborts, and nobody waits for a result
    }
  }
}
