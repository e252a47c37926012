/** The float64 reference of {@code io.moe4j.reference} as backends that the oracle can choose. */
@NullMarked
package io.moe4j.backend.cpu.reference;

import org.jspecify.annotations.NullMarked;
