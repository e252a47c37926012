package io.moe4j.comm.nccl;

import io.moe4j.api.device.DeviceStream;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * Which calls a stream has still to finish, and since when it works on each: a call is late when
 * the stream has reached it long ago, however long it stood in the queue before. Safe for several
 * threads.
 */
final class Marks implements AutoCloseable {
  /** One call. */
  final class Call {
    final Card.Mark before = card.newMark();
    final Card.Mark after = card.newMark();
    long number;
    String what = "";
    long startedNanos;
    boolean started;
    boolean ended;

    /** Behind what the call has enqueued. */
    void end(DeviceStream stream) {
      after.record(stream);
      synchronized (Marks.this) {
        ended = true;
      }
    }
  }

  private final Card card;
  private final Deque<Call> pending = new ArrayDeque<>();
  private final List<Call> free = new ArrayList<>();

  Marks(Card card) {
    this.card = card;
  }

  /** Before what a call enqueues. */
  synchronized Call begin(long number, String what, DeviceStream stream) {
    Call call = free.isEmpty() ? new Call() : free.removeLast();
    call.number = number;
    call.what = what;
    call.started = false;
    call.ended = false;
    call.before.record(stream);
    pending.add(call);
    return call;
  }

  /** {@return the first call that has not finished, null if all have} */
  synchronized @Nullable Call current() {
    for (Call c = pending.peek(); c != null; c = pending.peek()) {
      if (!c.ended || !c.after.isDone()) {
        if (!c.started && c.before.isDone()) {
          c.started = true;
          c.startedNanos = System.nanoTime();
        }
        return c;
      }
      free.add(pending.remove());
    }
    return null;
  }

  /** {@return for how long the stream has worked on a call} */
  synchronized long nanosAt(Call call) {
    return call.started ? System.nanoTime() - call.startedNanos : 0;
  }

  @Override
  public synchronized void close() {
    free.addAll(pending);
    pending.clear();
    for (Call c : free) {
      c.before.close();
      c.after.close();
    }
    free.clear();
  }
}
