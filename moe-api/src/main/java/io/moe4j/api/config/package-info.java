/** What a MoE layer is, as immutable values: one record per concern, checked at construction. */
@NullMarked
package io.moe4j.api.config;

import org.jspecify.annotations.NullMarked;
