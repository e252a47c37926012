@NullMarked
package io.moe4j.backend.cpu.ffi;

import org.jspecify.annotations.NullMarked;
