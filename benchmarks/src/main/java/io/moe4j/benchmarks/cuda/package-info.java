/** Measurements that need an NVIDIA card: commands that print tables, in the GPU bundle as well. */
@NullMarked
package io.moe4j.benchmarks.cuda;

import org.jspecify.annotations.NullMarked;
