/**
 * Kernels that GPU backends share, and the parts of a MoE block around the experts made of them:
 * router and topk, dispatch and combine, shared expert, latent projections ({@link
 * io.moe4j.cuda.ops.CudaBlockOpsProvider}); and what stands around a backend's own grouped products
 * ({@link io.moe4j.cuda.ops.ExpertKernels}): the sort, the slot table of the adapters, shrinks, the
 * weighted sum. Stands on the run-time {@code io.moe4j.cuda}, which knows nothing of it.
 *
 * <p>Launchers check shapes and types, choose the grid and enqueue; they allocate nothing on the
 * device and wait for nothing. Scratch is the caller's, laid out with {@link
 * io.moe4j.api.device.WorkspaceLayout}.
 *
 * <p>With fused LoRA a forward of a backend goes like this ({@code io.moe4j.cuda.experts} has the
 * code):
 *
 * <pre>
 *   SlotTables.of(context)                       rows of the adapters in use, before a capture
 *   TileSort                                     pairs by (expert, slot); tiles, rank pages
 *   ShrinkKernel     s = x . A^T                 rows with an adapter
 *   its own w13      f(x . w13^T + s . B^T)      over the tiles and pages
 *   ShrinkKernel, its own w2, CombineKernel      weighted sum over k in f32
 * </pre>
 *
 * <p><b>Why there are three sorts.</b> {@link io.moe4j.cuda.ops.PairSort} ({@code sort.cu}) keeps
 * pairs of one key in their order, because dispatch gives its rows to others, who may count on it,
 * and because a composed LoRA delta is then summed the same way in every run; it takes any number
 * of experts and slots in one or two launches. {@link io.moe4j.cuda.ops.TileSort} is for fused
 * kernels, where a row's arithmetic does not depend on its neighbours: it may leave the order
 * inside a segment free, counts with atomics in shared memory, and also lists the rank pages. It is
 * on the critical path of each forward, so {@code tile_sort.cu} does all of it in one launch (one
 * block, on capability 9.0 a cluster of up to eight); counters that do not fit shared memory go
 * through the launches of {@code sort.py}, with the same lists word for word. One sort for all
 * would have to keep an order that fused kernels do not need, or list pages that nobody reads.
 */
@NullMarked
package io.moe4j.cuda.ops;

import org.jspecify.annotations.NullMarked;
