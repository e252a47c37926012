package io.moe4j.api.spi;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.tensor.Memory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.MoeLayerWeights;
import java.util.Optional;

/**
 * An open device: memory, streams, and the parts of a MoE block around the experts. Safe for
 * several threads; close it after everything made from it.
 */
public interface Device extends AutoCloseable {
  /** Memory taken from a device; closing gives it back. */
  interface Buffer extends AutoCloseable {
    /** {@return the memory, valid until closed} */
    Memory memory();

    @Override
    void close();
  }

  /** Work recorded once and enqueued many times. */
  interface Graph extends AutoCloseable {
    /**
     * Enqueues the recorded work, which reads and writes the addresses it was recorded with. One
     * launch at a time may be in flight.
     *
     * @param stream any stream of the device
     */
    void launch(DeviceStream stream);

    @Override
    void close();
  }

  /** {@return what is known of it} */
  DeviceInfo info();

  /**
   * Takes memory, aligned to at least {@link Workspace#ALIGNMENT} bytes; contents undefined.
   *
   * @param byteSize not negative
   * @return the buffer, owned by the caller
   * @throws io.moe4j.api.DeviceException if there is not enough
   */
  Buffer allocate(long byteSize);

  /** {@return the stream to use when the caller has none} */
  DeviceStream defaultStream();

  /**
   * Copies elements; same shape and dtype, both contiguous, either side on the host or on this
   * device.
   *
   * @param from source
   * @param to destination
   * @param stream ordered with its work; a host destination is complete only after {@link
   *     DeviceStream#synchronize()}
   */
  void copy(Tensor from, Tensor to, DeviceStream stream);

  /**
   * Records what {@code work} enqueues on a stream instead of running it. Run the work once before:
   * kernels are loaded when they are first used, which cannot be recorded.
   *
   * @param stream of this device
   * @param work must neither allocate, nor synchronise, nor read results
   * @return the graph, owned by the caller; empty where the device records nothing, and {@code
   *     work} was not called
   * @throws io.moe4j.api.DeviceException if the work did what a recording cannot hold
   */
  default Optional<Graph> capture(DeviceStream stream, Runnable work) {
    return Optional.empty();
  }

  /**
   * Prepares the parts of a block around the routed experts.
   *
   * @param config the layer
   * @param weights fits {@code config}; views that stay valid until the result is closed
   * @return the operations, owned by the caller
   */
  BlockOps prepareBlock(MoeConfig config, MoeLayerWeights weights);

  @Override
  void close();
}
