/**
 * The MoE block in float64, written to be read: the truth that every backend, fast or foreign, is
 * compared with. No blocking, no threads, no scratch; every tensor element is widened to double
 * where it is used, sums run in index order, and a result is rounded once, where it is stored.
 *
 * <p>Reading order: {@link io.moe4j.reference.ReferenceMath} (linear maps, activations), {@link
 * io.moe4j.reference.ReferenceRouting}, {@link io.moe4j.reference.ReferenceMoe} (experts, shared
 * expert, latent projections); the other classes put these behind the plugin contract.
 */
@NullMarked
package io.moe4j.reference;

import org.jspecify.annotations.NullMarked;
