package io.moe4j.backend.cpu.ffi;

import io.moe4j.api.tensor.DType;
import java.lang.foreign.MemorySegment;
import org.jspecify.annotations.Nullable;

/**
 * The C kernels for what stands around the experts, with one instruction set. Thread-safe. The
 * functions trust every number: callers have checked that what they name lies inside its memory.
 */
public final class NativeBlock {
  private final int isa;

  /**
   * With one instruction set.
   *
   * @param isa its number in moe.h
   */
  NativeBlock(int isa) {
    this.isa = isa;
  }

  /**
   * The product of some rows with some outputs' weights, which lie as they came.
   *
   * @param x dense {@code [tokens, in]}, may be on the heap, like everything else here
   * @param type its dtype
   * @param w {@code [out, in]}
   * @param weightType its dtype
   * @param weightStride from one output to the next, in bytes
   * @param bias F32 {@code [out]}, or null
   * @param y F32 {@code [tokens, out]}, overwritten where the two ranges meet
   * @param yStride from one token to the next, in bytes
   * @param in elements of a row
   * @param from first token
   * @param to behind the last
   * @param out first output
   * @param outs how many
   */
  public void dense(
      MemorySegment x,
      DType type,
      MemorySegment w,
      DType weightType,
      long weightStride,
      @Nullable MemorySegment bias,
      MemorySegment y,
      long yStride,
      long in,
      long from,
      long to,
      long out,
      long outs) {
    MemorySegment b = bias == null ? MemorySegment.NULL : bias;
    int xCode = CallStruct.code(type);
    int wCode = CallStruct.code(weightType);
    try {
      NativeCalls.DENSE.invokeExact(
          isa, x, xCode, w, wCode, weightStride, b, y, yStride, in, from, to, out, outs);
    } catch (Throwable t) {
      throw NativeKernels.failed(t);
    }
  }

  /**
   * A layer's output for some tokens: {@code routed + factor shared}, halved or not, plus a bias.
   *
   * @param routed F32 {@code [tokens, hidden]}, may be on the heap, like everything else here
   * @param shared likewise, or null
   * @param factor F32 {@code [tokens]}, or null for 1
   * @param half whether the sum is halved
   * @param bias F32 {@code [hidden]}, or null
   * @param output {@code [tokens, hidden]}
   * @param type its dtype
   * @param hidden elements of a row
   * @param from first token
   * @param to behind the last
   */
  public void finish(
      MemorySegment routed,
      @Nullable MemorySegment shared,
      @Nullable MemorySegment factor,
      boolean half,
      @Nullable MemorySegment bias,
      MemorySegment output,
      DType type,
      long hidden,
      long from,
      long to) {
    MemorySegment s = shared == null ? MemorySegment.NULL : shared;
    MemorySegment f = factor == null ? MemorySegment.NULL : factor;
    MemorySegment b = bias == null ? MemorySegment.NULL : bias;
    int code = CallStruct.code(type);
    try {
      NativeCalls.FINISH.invokeExact(
          isa, routed, s, f, half ? 1 : 0, b, output, code, hidden, from, to);
    } catch (Throwable t) {
      throw NativeKernels.failed(t);
    }
  }

  /**
   * Experts and weights of some tokens, which {@link RouteStruct} can describe.
   *
   * @param how a {@code struct moe_route}
   * @param logits F32 {@code [tokens, experts]}, may be on the heap, like everything else here
   * @param bias F32 {@code [experts]}, added for the choice alone, or null
   * @param scale F32 {@code [experts]}, what weights are multiplied with, or null
   * @param ids int32 {@code [tokens, topK]}
   * @param weights F32 {@code [tokens, topK]}
   * @param from first token
   * @param to behind the last
   */
  public void route(
      MemorySegment how,
      MemorySegment logits,
      @Nullable MemorySegment bias,
      @Nullable MemorySegment scale,
      MemorySegment ids,
      MemorySegment weights,
      long from,
      long to) {
    MemorySegment b = bias == null ? MemorySegment.NULL : bias;
    MemorySegment s = scale == null ? MemorySegment.NULL : scale;
    try {
      NativeCalls.ROUTE.invokeExact(isa, how, logits, b, s, ids, weights, from, to);
    } catch (Throwable t) {
      throw NativeKernels.failed(t);
    }
  }
}
