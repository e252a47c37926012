/**
 * The way of a token through the kernels: weights on the device, scratch, launches; {@link
 * io.moe4j.backend.triton.launch.TritonExperts} tells it. Not API.
 */
@NullMarked
package io.moe4j.backend.triton.launch;

import org.jspecify.annotations.NullMarked;
