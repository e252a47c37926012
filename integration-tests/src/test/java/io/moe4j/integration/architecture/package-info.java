/** The house rules that the compiler does not hold. */
@NullMarked
package io.moe4j.integration.architecture;

import org.jspecify.annotations.NullMarked;
