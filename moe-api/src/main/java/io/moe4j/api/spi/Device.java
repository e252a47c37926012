package io.moe4j.api.spi;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.tensor.Memory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.MoeLayerWeights;

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
