package io.moe4j.lora;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.MemorySegment;

/**
 * A host tensor as one row per (token, k) pair. Offsets and strides are in bytes.
 *
 * @param segment the memory
 * @param dtype element type
 * @param base where the first row begins
 * @param topK pairs per token
 * @param tokenStride from a token to the next
 * @param pairStride from one pair of a token to the next; 0 where all pairs of a token read one row
 * @param elementStride from an element of a row to the next
 * @param width elements in a row
 */
record PairRows(
    MemorySegment segment,
    DType dtype,
    long base,
    int topK,
    long tokenStride,
    long pairStride,
    long elementStride,
    int width) {

  /** {@code [T, K, width]}. */
  static PairRows perPair(Tensor t) {
    int bytes = t.dtype().bits() / Byte.SIZE;
    return new PairRows(
        Tensors.segment(t),
        t.dtype(),
        t.byteOffset(),
        Math.toIntExact(t.size(1)),
        t.stride(0) * bytes,
        t.stride(1) * bytes,
        t.stride(2) * bytes,
        Math.toIntExact(t.size(2)));
  }

  /** {@code [T * K, width]}. */
  static PairRows flatPairs(Tensor t, int topK) {
    int bytes = t.dtype().bits() / Byte.SIZE;
    return new PairRows(
        Tensors.segment(t),
        t.dtype(),
        t.byteOffset(),
        topK,
        topK * t.stride(0) * bytes,
        t.stride(0) * bytes,
        t.stride(1) * bytes,
        Math.toIntExact(t.size(1)));
  }

  /** {@code [T, width]}, the same row for all pairs of a token. */
  static PairRows perToken(Tensor t, int topK) {
    int bytes = t.dtype().bits() / Byte.SIZE;
    return new PairRows(
        Tensors.segment(t),
        t.dtype(),
        t.byteOffset(),
        topK,
        t.stride(0) * bytes,
        0,
        t.stride(1) * bytes,
        Math.toIntExact(t.size(1)));
  }

  /** {@code [T, K]}, one element a pair. */
  static PairRows scalars(Tensor t) {
    int bytes = t.dtype().bits() / Byte.SIZE;
    return new PairRows(
        Tensors.segment(t),
        t.dtype(),
        t.byteOffset(),
        Math.toIntExact(t.size(1)),
        t.stride(0) * bytes,
        t.stride(1) * bytes,
        0,
        1);
  }

  /** Where the row of a pair begins. */
  long offset(int pair) {
    return base + pair / topK * tokenStride + pair % topK * pairStride;
  }
}
