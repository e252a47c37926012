/**
 * Experts on NVIDIA GPUs by Triton kernels that are compiled ahead of time, with LoRA fused into
 * the grouped GEMMs. Kernel sources lie in {@code src/main/triton}, those that other backends use
 * as well in moe-cuda. Here are the two backends; {@code options} has what a user can set, {@code
 * tiles} chooses, {@code launch} runs, {@code tuning} measures.
 */
@NullMarked
package io.moe4j.backend.triton;

import org.jspecify.annotations.NullMarked;
