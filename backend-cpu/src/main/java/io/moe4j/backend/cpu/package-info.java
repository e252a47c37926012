/** Experts on the host processor: a float64 reference and a fast path on the Vector API. */
@NullMarked
package io.moe4j.backend.cpu;

import org.jspecify.annotations.NullMarked;
