/**
 * Experts on NVIDIA GPUs by Triton kernels that are compiled ahead of time, with LoRA fused into
 * the grouped GEMMs. Kernel sources lie in {@code src/main/triton}; {@link
 * io.moe4j.backend.triton.TritonExperts} tells the way of a token through them.
 */
@NullMarked
package io.moe4j.backend.triton;

import org.jspecify.annotations.NullMarked;
