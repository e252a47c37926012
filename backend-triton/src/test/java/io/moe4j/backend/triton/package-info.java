@NullMarked
package io.moe4j.backend.triton;

import org.jspecify.annotations.NullMarked;
