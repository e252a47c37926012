/** Micrometer meters for programs that run layers: {@link io.moe4j.micrometer.MoeMeters}. */
@org.jspecify.annotations.NullMarked
package io.moe4j.micrometer;
