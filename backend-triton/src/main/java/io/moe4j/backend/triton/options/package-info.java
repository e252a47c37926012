/** What a user can set for a layer. */
@NullMarked
package io.moe4j.backend.triton.options;

import org.jspecify.annotations.NullMarked;
