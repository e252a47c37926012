/**
 * Ranks on NVIDIA GPUs, one process each, connected by the NCCL that is installed on the machine.
 * {@link io.moe4j.comm.nccl.NcclCommProvider} and the exchange that keeps rows on the device,
 * {@link io.moe4j.comm.nccl.DeviceGatherProvider}, are found by {@link java.util.ServiceLoader}.
 */
@NullMarked
package io.moe4j.comm.nccl;

import org.jspecify.annotations.NullMarked;
