/** Tests of the forward that grouped backends share. */
@NullMarked
package io.moe4j.cuda.experts;

import org.jspecify.annotations.NullMarked;
