/** Tests of the shared kernels; those that need a card carry {@link io.moe4j.cuda.GpuTest}. */
@NullMarked
package io.moe4j.cuda.ops;

import org.jspecify.annotations.NullMarked;
