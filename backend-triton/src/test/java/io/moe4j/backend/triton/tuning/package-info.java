/** Tests of the search and of what it keeps. */
@NullMarked
package io.moe4j.backend.triton.tuning;

import org.jspecify.annotations.NullMarked;
