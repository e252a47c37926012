package io.moe4j.api.weights;

/**
 * How the codes of a weight {@code [out, in]} lie in its tensor. Only the order of codes inside
 * words is listed here: whether words run along rows or columns in memory is a matter of strides,
 * so a transposed file (GPTQ, AWQ) is read through a transposed view. Open: later versions may add
 * some.
 *
 * @since 0.2.0
 */
public enum Packing {
  /** One element a weight: {@code [out, in]} of the code's own dtype (I8, F8_E4M3, F4). */
  DENSE,
  /**
   * I32 words along the inputs, the first in the low bits: {@code [out, ceil(in * bits / 32)]}.
   * compressed-tensors has it so in memory, GPTQ transposed.
   */
  WORDS_ALONG_IN,
  /**
   * I32 words along the outputs, the first in the low bits: {@code [ceil(out * bits / 32), in]}.
   * Zero points of GPTQ (transposed) and compressed-tensors.
   */
  WORDS_ALONG_OUT,
  /**
   * As {@link #WORDS_ALONG_OUT}, and field {@code j} of a word holds output {@code 0, 2, 4, 6, 1,
   * 3, 5, 7} of its eight: AWQ's gemm layout (transposed), 4 bits only.
   */
  WORDS_ALONG_OUT_AWQ;

  /** Which of its eight outputs field {@code j} of an AWQ word holds. */
  private static final int[] AWQ_ORDER = {0, 2, 4, 6, 1, 3, 5, 7};

  /** In which field of an AWQ word output {@code i} of its eight is. */
  private static final int[] AWQ_FIELD = new int[AWQ_ORDER.length];

  static {
    for (int field = 0; field < AWQ_ORDER.length; field++) {
      AWQ_FIELD[AWQ_ORDER[field]] = field;
    }
  }

  /**
   * {@return the shift, in bits, of a code in its word}
   *
   * @param out output of the code
   * @param in input of the code
   * @param bits bits of a code
   */
  public int shift(long out, long in, int bits) {
    int perWord = Integer.SIZE / bits;
    return switch (this) {
      case DENSE -> 0;
      case WORDS_ALONG_IN -> (int) (in % perWord) * bits;
      case WORDS_ALONG_OUT -> (int) (out % perWord) * bits;
      case WORDS_ALONG_OUT_AWQ -> AWQ_FIELD[(int) (out % perWord)] * bits;
    };
  }

  /**
   * {@return the shape of the tensor that holds a weight's codes}
   *
   * @param out outputs
   * @param in inputs
   * @param bits bits of a code
   */
  public long[] shape(long out, long in, int bits) {
    int perWord = bits == 0 ? 1 : Integer.SIZE / bits;
    return switch (this) {
      case DENSE -> new long[] {out, in};
      case WORDS_ALONG_IN -> new long[] {out, Math.ceilDiv(in, perWord)};
      case WORDS_ALONG_OUT, WORDS_ALONG_OUT_AWQ -> new long[] {Math.ceilDiv(out, perWord), in};
    };
  }
}
