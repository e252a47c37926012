/** The backend's kernels in C (src/main/c): how they are found, loaded and called. */
@NullMarked
package io.moe4j.backend.cpu.ffi;

import org.jspecify.annotations.NullMarked;
