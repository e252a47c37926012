/**
 * The weights of a MoE block, as views of memory that the caller owns: a checkpoint's mapped file,
 * an engine's buffers. Nothing here copies. Shapes are logical; a view may be strided (a transposed
 * or interleaved file layout), and a backend that needs dense rows repacks in {@code prepare}.
 */
@NullMarked
package io.moe4j.api.weights;

import org.jspecify.annotations.NullMarked;
