/**
 * Root of the moe4j API: the exceptions, and the words used everywhere below.
 *
 * <table>
 * <caption>Words</caption>
 * <tr><th>word</th><th>meaning</th></tr>
 * <tr><td>{@code T, K, E, H, I}</td><td>tokens, experts per token (top_k), experts, hidden size, expert intermediate size</td></tr>
 * <tr><td>{@code P}</td><td>(token, k) pairs, {@code T * K}; pair {@code p} belongs to token {@code p / K}</td></tr>
 * <tr><td>w13, w2</td><td>gate and up projections stacked {@code [E, 2I, H]} ({@code [E, I, H]} without gate); down {@code [E, H, I]}</td></tr>
 * <tr><td>topk ids / weights</td><td>{@code [T, K]} int32 / float32, the router's choice, global expert ids, -1 = no expert</td></tr>
 * <tr><td>expert map</td><td>global expert to local expert, -1 where another rank owns it</td></tr>
 * <tr><td>slot</td><td>index {@code 0..maxLoras-1} of a loaded adapter; -1 in a token's mapping = base model only</td></tr>
 * </table>
 */
@NullMarked
package io.moe4j.api;

import org.jspecify.annotations.NullMarked;
