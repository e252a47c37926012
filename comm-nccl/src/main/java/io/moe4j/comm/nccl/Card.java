package io.moe4j.comm.nccl;

import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaEvent;
import io.moe4j.cuda.CudaStream;
import io.moe4j.cuda.StreamGuard;
import java.util.Optional;

/** What a communicator needs of a device beyond its memory. */
interface Card {
  /** A point in a stream's work, recorded again and again. */
  interface Mark extends AutoCloseable {
    /** Marks what was enqueued so far. */
    void record(DeviceStream stream);

    /** {@return whether the stream has come so far} */
    boolean isDone();

    @Override
    void close();
  }

  /** {@return which one} */
  DeviceId id();

  /** {@return the device whose memory other ranks may write to; empty for one that is none} */
  default Optional<CudaDevice> cuda() {
    return Optional.empty();
  }

  /** Before each call of NCCL, which acts on the calling thread's device. */
  void makeCurrent();

  /** {@return whether work enqueued now is recorded instead of run} */
  boolean isCapturing(DeviceStream stream);

  /** {@return a mark, owned by the caller} */
  Mark newMark();

  /** Asks a guard from now on. */
  void addGuard(StreamGuard guard);

  /** Asks it no more. */
  void removeGuard(StreamGuard guard);

  /**
   * The real one.
   *
   * @param device stays the caller's
   */
  record Cuda(CudaDevice device) implements Card {
    @Override
    public DeviceId id() {
      return device.info().id();
    }

    @Override
    public Optional<CudaDevice> cuda() {
      return Optional.of(device);
    }

    @Override
    public void makeCurrent() {
      device.makeCurrent();
    }

    @Override
    public boolean isCapturing(DeviceStream stream) {
      return CudaStream.isCapturing(stream);
    }

    @Override
    public Mark newMark() {
      CudaEvent event = device.newEvent(false);
      return new Mark() {
        @Override
        public void record(DeviceStream stream) {
          event.record(stream);
        }

        @Override
        public boolean isDone() {
          return event.isDone();
        }

        @Override
        public void close() {
          event.close();
        }
      };
    }

    @Override
    public void addGuard(StreamGuard guard) {
      device.addGuard(guard);
    }

    @Override
    public void removeGuard(StreamGuard guard) {
      device.removeGuard(guard);
    }
  }
}
