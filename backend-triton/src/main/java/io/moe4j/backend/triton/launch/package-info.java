/**
 * Weights on the device and launches; the way of a token through them is that of {@link
 * io.moe4j.cuda.experts.GroupedExperts}. Not API.
 */
@NullMarked
package io.moe4j.backend.triton.launch;

import org.jspecify.annotations.NullMarked;
