/** Tests of launches. */
@NullMarked
package io.moe4j.backend.triton.launch;

import org.jspecify.annotations.NullMarked;
