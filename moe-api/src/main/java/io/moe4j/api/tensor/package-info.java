/** Dtypes, memory and tensors: descriptions of memory that somebody else owns. */
@NullMarked
package io.moe4j.api.tensor;

import org.jspecify.annotations.NullMarked;
