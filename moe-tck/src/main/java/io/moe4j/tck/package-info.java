/**
 * The conformance kit: what every experts backend and every device is measured against. Extend
 * {@link io.moe4j.tck.ExpertsConformanceTest} for a backend, {@link
 * io.moe4j.tck.BlockOpsConformanceTest} for a device provider, {@link
 * io.moe4j.tck.CommunicatorConformanceTest} for a communicator, {@link
 * io.moe4j.tck.ExchangeConformanceTest} for an exchange. Needs moe-api, moe-reference and JUnit
 * only. Each class prints one line that counts the cases which were skipped, by reason.
 */
@NullMarked
package io.moe4j.tck;

import org.jspecify.annotations.NullMarked;
