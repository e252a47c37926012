/** Tests of the choice of tiles. */
@NullMarked
package io.moe4j.backend.triton.tiles;

import org.jspecify.annotations.NullMarked;
