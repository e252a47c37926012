/**
 * Which tiles a forward runs with: a pure function of its sizes, over the kernels that are
 * compiled. Not API.
 */
@NullMarked
package io.moe4j.backend.triton.tiles;

import org.jspecify.annotations.NullMarked;
