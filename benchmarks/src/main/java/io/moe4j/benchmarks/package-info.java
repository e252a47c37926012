/** JMH benchmarks against the machine's own roofline. */
@NullMarked
package io.moe4j.benchmarks;

import org.jspecify.annotations.NullMarked;
