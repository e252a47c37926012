/** Tests; those that need a card carry {@link io.moe4j.cuda.GpuTest}. */
@NullMarked
package io.moe4j.cuda;

import org.jspecify.annotations.NullMarked;
