/** Finds backends at run time, picks one, explains the choice; the layer facade. */
@NullMarked
package io.moe4j.oracle;

import org.jspecify.annotations.NullMarked;
