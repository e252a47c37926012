@NullMarked
package io.moe4j.reference;

import org.jspecify.annotations.NullMarked;
