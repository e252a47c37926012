package io.moe4j.backend.cpu;

import io.moe4j.backend.cpu.ffi.NativeBlock;
import io.moe4j.backend.cpu.kernel.Kernels;
import org.jspecify.annotations.Nullable;

/**
 * What computes the parts of a block around its experts.
 *
 * @param java kernels in Java
 * @param c kernels in C, or null where there are none
 * @param team the threads
 */
record BlockKernels(Kernels java, @Nullable NativeBlock c, ThreadTeam team) {}
