/**
 * The arithmetic of the CPU backend, on host memory and f32 accumulators, behind {@link
 * io.moe4j.backend.cpu.kernel.Kernels}: once with the Vector API and once in plain Java, so that
 * the backend loads and works where {@code jdk.incubator.vector} is absent.
 */
@NullMarked
package io.moe4j.backend.cpu.kernel;

import org.jspecify.annotations.NullMarked;
