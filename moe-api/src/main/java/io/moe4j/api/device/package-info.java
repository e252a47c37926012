/**
 * Devices as a run-time sees them: memory, ordered streams, fences, recorded work. Knows nothing of
 * MoE layers; what a device contributes to a MoE block is {@link
 * io.moe4j.api.spi.BlockOpsProvider}'s business.
 */
@NullMarked
package io.moe4j.api.device;

import org.jspecify.annotations.NullMarked;
