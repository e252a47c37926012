@NullMarked
package io.moe4j.backend.cpu;

import org.jspecify.annotations.NullMarked;
