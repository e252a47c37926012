/** Dtypes, memory and tensors: descriptions of memory owned elsewhere. */
@NullMarked
package io.moe4j.api.tensor;

import org.jspecify.annotations.NullMarked;
