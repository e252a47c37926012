@NullMarked
package io.moe4j.backend.cpu.kernel;

import org.jspecify.annotations.NullMarked;
