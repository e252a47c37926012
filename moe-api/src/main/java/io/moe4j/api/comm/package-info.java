/**
 * Collective communication between the ranks of one layer. What moves tokens to experts stands on
 * it ({@link io.moe4j.api.spi.ExpertExchange}); what implements it is NCCL, a loopback socket, or
 * the threads of one JVM.
 */
@NullMarked
package io.moe4j.api.comm;

import org.jspecify.annotations.NullMarked;
