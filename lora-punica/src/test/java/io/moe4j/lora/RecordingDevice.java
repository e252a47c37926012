package io.moe4j.lora;

import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Memory;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * A device whose streams do nothing until they are told to: what is enqueued stays in its queue, so
 * a test sees what waits for what, and that nobody waited on the host. Streams are told apart by
 * their names, in the order in which they were made: {@code default}, {@code s1}, {@code s2}. Not
 * for several threads.
 */
final class RecordingDevice extends FakeDevice {
  /** What was enqueued, in order, like {@code s1: copy 96}; frees of device and host memory too. */
  final List<String> log = new ArrayList<>();

  final AtomicInteger hostBuffers = new AtomicInteger();
  private final Stream main = new Stream("default");
  private final List<MemorySegment> hostMemory = new ArrayList<>();
  private int streams;
  private int fences;

  /** A queue of work; an entry that cannot run yet holds up those behind it. */
  final class Stream implements OwnedStream {
    private final String name;
    private final ArrayDeque<Work> work = new ArrayDeque<>();
    private boolean held;

    Stream(String name) {
      this.name = name;
    }

    /** Enqueues something that a test wants to see done. */
    void enqueue(Runnable task) {
      work.add(() -> {
        task.run();
        return true;
      });
    }

    /** As if something slow were in front of the queue. */
    void hold() {
      held = true;
    }

    /** Ends that, and does all that can be done now on any stream. */
    void go() {
      held = false;
      runAll();
    }

    private void run() {
      while (!held && !work.isEmpty() && work.peek().tryRun()) {
        work.remove();
      }
    }

    boolean isIdle() {
      return work.isEmpty();
    }

    @Override
    public DeviceId device() {
      return info().id();
    }

    @Override
    public long handle() {
      return System.identityHashCode(this);
    }

    @Override
    public void synchronize() {
      log.add(name + ": synchronize");
      runAll();
      if (!work.isEmpty()) {
        throw new IllegalStateException(name + " waits for what never comes");
      }
    }

    @Override
    public void close() {}
  }

  /** One entry of a queue. */
  private interface Work {
    /** {@return false to stay in front of the queue} */
    boolean tryRun();
  }

  private final class RecordedFence implements Fence {
    private final String name = "f" + ++fences;
    private boolean done;
    private boolean closed;

    @Override
    public boolean isDone() {
      return done || closed;
    }

    @Override
    public boolean holdBack(DeviceStream stream) {
      if (isDone()) {
        return false;
      }
      Stream s = (Stream) stream;
      log.add(s.name + ": wait " + name);
      s.work.add(() -> done);
      return true;
    }

    @Override
    public void close() {
      closed = true;
    }
  }

  private final List<Stream> all = new ArrayList<>(List.of(main));

  private void runAll() {
    boolean any = true;
    while (any) {
      int before = all.stream().mapToInt(s -> s.work.size()).sum();
      all.forEach(Stream::run);
      any = all.stream().mapToInt(s -> s.work.size()).sum() < before;
    }
  }

  /** A stream of the registry's, by its name. */
  Stream stream(String name) {
    return all.stream().filter(s -> s.name.equals(name)).findFirst().orElseThrow();
  }

  @Override
  public Stream defaultStream() {
    return main;
  }

  @Override
  public Stream newStream() {
    Stream s = new Stream("s" + ++streams);
    all.add(s);
    return s;
  }

  @Override
  public Fence fence(DeviceStream stream) {
    RecordedFence f = new RecordedFence();
    Stream s = (Stream) stream;
    log.add(s.name + ": fence " + f.name);
    s.enqueue(() -> f.done = true);
    return f;
  }

  @Override
  public Buffer allocateHost(long byteSize) {
    MemorySegment segment = Arena.ofAuto().allocate(Math.max(1, byteSize), 64);
    hostMemory.add(segment);
    hostBuffers.incrementAndGet();
    return new Buffer() {
      private boolean open = true;

      @Override
      public Memory memory() {
        return new HostMemory(segment);
      }

      @Override
      public void close() {
        if (open) {
          open = false;
          segment.fill((byte) 0x55);
          hostBuffers.decrementAndGet();
        }
      }
    };
  }

  @Override
  public Buffer allocate(long byteSize, DeviceStream stream) {
    Buffer buffer = allocate(byteSize);
    return new Buffer() {
      @Override
      public Memory memory() {
        return buffer.memory();
      }

      @Override
      public void close() {
        ((Stream) stream).enqueue(buffer::close);
        runAll();
      }
    };
  }

  @Override
  public void copy(Tensor from, Tensor to, DeviceStream stream) {
    Stream s = (Stream) stream;
    boolean fast =
        hostMemory.stream().anyMatch(m -> m.equals(((HostMemory) from.memory()).segment()));
    log.add(s.name + ": copy " + from.elementCount() + (fast ? "" : " of ordinary memory"));
    s.enqueue(() -> super.copy(from, to, stream));
  }
}
