/**
 * Kernels that every GPU backend shares, and the parts of a MoE block around the experts made of
 * them: router and topk, dispatch and combine, shared expert, latent projections, sorts of (token,
 * k) pairs. Stands on the run-time {@code io.moe4j.cuda}, which knows nothing of it.
 *
 * <p>Launchers check shapes and types, choose the grid and enqueue; they allocate nothing on the
 * device and wait for nothing. Scratch is the caller's.
 */
@NullMarked
package io.moe4j.cuda.ops;

import org.jspecify.annotations.NullMarked;
