@NullMarked
package io.moe4j.backend.marlin;

import org.jspecify.annotations.NullMarked;
