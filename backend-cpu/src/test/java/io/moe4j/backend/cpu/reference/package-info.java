@NullMarked
package io.moe4j.backend.cpu.reference;

import org.jspecify.annotations.NullMarked;
