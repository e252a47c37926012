/**
 * Ranks in JVMs of their own, on one host or several, connected by TCP. Carries tensors in host
 * memory; {@link io.moe4j.comm.tcp.TcpCommProvider} is found by {@link java.util.ServiceLoader}.
 */
@NullMarked
package io.moe4j.comm.tcp;

import org.jspecify.annotations.NullMarked;
