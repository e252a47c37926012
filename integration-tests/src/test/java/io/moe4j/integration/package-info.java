/** Tests across modules: recorded outputs, composition, concurrency. */
@NullMarked
package io.moe4j.integration;

import org.jspecify.annotations.NullMarked;
