/** The moe command. */
@NullMarked
package io.moe4j.cli;

import org.jspecify.annotations.NullMarked;
