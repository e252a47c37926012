/** Tests. */
@org.jspecify.annotations.NullMarked
package io.moe4j.micrometer;
