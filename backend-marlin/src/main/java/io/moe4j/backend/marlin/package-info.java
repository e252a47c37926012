/** Experts on NVIDIA GPUs whose weights stay packed: integers, FP8 and FP4. */
@NullMarked
package io.moe4j.backend.marlin;

import org.jspecify.annotations.NullMarked;
