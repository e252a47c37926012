/**
 * LoRA as data and as a contract. For token {@code t} of slot {@code s} and its chosen expert
 * {@code e}, with pair {@code p = t * K + k}:
 *
 * <pre>
 *   gate[p] += B_gate[s,e] . (A_gate[s,e] . x[t])        up[p] likewise, before the activation, no router weight
 *   y[p]    += B_down[s,e] . (A_down[s,e] . act[p])      before the router weight is applied to y[p]
 *   logits[t] += B_router[s] . (A_router[s] . x[t])     before anything is chosen, where the layer allows it
 * </pre>
 *
 * A pair is left alone when the token's slot is -1, the slot is empty or lacks the projection, or
 * the expert is -1 or on another rank. The scale {@code alpha / r} (or {@code alpha / sqrt(r)}) is
 * folded into B when an adapter is loaded; there is no run-time scale.
 */
@NullMarked
package io.moe4j.api.lora;

import org.jspecify.annotations.NullMarked;
