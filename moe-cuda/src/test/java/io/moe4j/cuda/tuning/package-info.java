/** Tests of choices measured on the user's card. */
@NullMarked
package io.moe4j.cuda.tuning;

import org.jspecify.annotations.NullMarked;
