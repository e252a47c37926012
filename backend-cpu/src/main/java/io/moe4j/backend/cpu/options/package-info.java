/** What a user can set for a layer. */
@NullMarked
package io.moe4j.backend.cpu.options;

import org.jspecify.annotations.NullMarked;
