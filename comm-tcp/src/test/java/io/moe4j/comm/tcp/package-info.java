@NullMarked
package io.moe4j.comm.tcp;

import org.jspecify.annotations.NullMarked;
