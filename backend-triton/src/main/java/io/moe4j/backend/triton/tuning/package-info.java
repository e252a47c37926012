/**
 * Tiles measured on the user's card: the search, the file that keeps what it found, and the choice
 * of a layer from it. Not API.
 */
@NullMarked
package io.moe4j.backend.triton.tuning;

import org.jspecify.annotations.NullMarked;
