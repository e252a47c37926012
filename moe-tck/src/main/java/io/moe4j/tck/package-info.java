/**
 * The conformance kit: what every experts backend and every device is measured against. Extend
 * {@link io.moe4j.tck.ExpertsConformanceTest} for a backend, {@link
 * io.moe4j.tck.BlockOpsConformanceTest} for a device provider.
 */
@NullMarked
package io.moe4j.tck;

import org.jspecify.annotations.NullMarked;
