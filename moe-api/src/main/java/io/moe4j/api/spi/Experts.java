package io.moe4j.api.spi;

import io.moe4j.api.device.Workspace;
import java.util.List;

/**
 * The prepared experts of one layer: weights in place, kernels chosen. Either {@link
 * ModularExperts} or {@link MonolithicExperts}.
 *
 * <p>Threads: {@code apply} may be called from several threads at once as long as each call has a
 * {@link Workspace} of its own (and, on a device, a stream of its own). {@code close} must not
 * overlap {@code apply}; it releases what {@code prepare} took and may be called twice.
 *
 * @since 0.1.0
 */
public sealed interface Experts extends AutoCloseable permits ModularExperts, MonolithicExperts {
  /**
   * The scratch one call of {@code apply} needs.
   *
   * @param maxTokens the largest {@code T} of the call (for BATCHED: rows per expert)
   * @return bytes, 0 for none
   */
  long workspaceBytes(int maxTokens);

  /**
   * What {@code prepare} decided: kernels, where weights are, bytes they take. {@code explain()} of
   * a layer's selection shows it. Cheap, callable by any thread until {@code close}, and always the
   * same.
   *
   * @return a line or two, names distinct; empty by default
   * @since 0.2.0
   */
  default List<Fact> facts() {
    return List.of();
  }

  @Override
  void close();
}
