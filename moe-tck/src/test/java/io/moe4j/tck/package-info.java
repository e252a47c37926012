@NullMarked
package io.moe4j.tck;

import org.jspecify.annotations.NullMarked;
