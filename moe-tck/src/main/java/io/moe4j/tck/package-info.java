/** What every experts backend is measured against. */
@NullMarked
package io.moe4j.tck;

import org.jspecify.annotations.NullMarked;
