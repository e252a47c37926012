/** A router's choice, as experts and LoRA wrappers read it. */
@NullMarked
package io.moe4j.api.routing;

import org.jspecify.annotations.NullMarked;
