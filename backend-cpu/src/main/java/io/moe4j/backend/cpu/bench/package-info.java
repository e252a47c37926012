/** What this machine can do at best, measured: the yardstick for the backend's speed. */
@NullMarked
package io.moe4j.backend.cpu.bench;

import org.jspecify.annotations.NullMarked;
