/** Tests of discovery, selection and the layer facade. */
@NullMarked
package io.moe4j.oracle;

import org.jspecify.annotations.NullMarked;
