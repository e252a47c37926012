package io.moe4j.backend.cpu.ffi;

import io.moe4j.api.tensor.DType;
import io.moe4j.backend.cpu.ffi.NativeLibrary.UnavailableException;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.util.Optional;
import org.jspecify.annotations.Nullable;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * The C kernels with one instruction set. Thread-safe. The functions trust every number: callers
 * have checked that what they name lies inside its memory.
 */
public final class NativeKernels {
  private static final Logger LOG = LoggerFactory.getLogger(NativeKernels.class);

  /**
   * The kernels of this JVM, or why there are none.
   *
   * @param kernels null if there are none
   * @param reason one line; empty if there are kernels
   */
  public record Choice(@Nullable NativeKernels kernels, String reason) {}

  private static final class Loaded {
    static final @Nullable SymbolLookup SYMBOLS;
    static final String REASON;

    static {
      SymbolLookup symbols = null;
      String reason = "";
      try {
        symbols = NativeLibrary.load();
      } catch (UnavailableException e) {
        reason = String.valueOf(e.getMessage());
      }
      SYMBOLS = symbols;
      REASON = reason;
    }

    private Loaded() {}
  }

  private static final class Best {
    static final int CODE = bestCode();
  }

  private final Isa isa;

  private NativeKernels(Isa isa) {
    this.isa = isa;
  }

  /** {@return the machine's best kernels} */
  public static Choice best() {
    return choose(null);
  }

  /**
   * {@return the kernels of one instruction set, or why there are none}
   *
   * @param isa which
   */
  public static Choice choice(Isa isa) {
    return choose(isa);
  }

  /**
   * {@return the kernels of one instruction set, empty where the machine lacks it}
   *
   * @param isa which
   */
  public static Optional<NativeKernels> of(Isa isa) {
    return Optional.ofNullable(choose(isa).kernels());
  }

  static SymbolLookup symbols() {
    SymbolLookup s = Loaded.SYMBOLS;
    if (s == null) {
      throw new IllegalStateException(Loaded.REASON);
    }
    return s;
  }

  private static Choice choose(@Nullable Isa wanted) {
    if (Loaded.SYMBOLS == null) {
      return new Choice(null, Loaded.REASON);
    }
    int best = Best.CODE;
    if (wanted != null) {
      return wanted.isIn(best)
          ? new Choice(new NativeKernels(wanted), "")
          : new Choice(
              null, wanted.title() + " was asked for, which this processor or system lacks");
    }
    return Isa.of(best)
        .map(isa -> new Choice(new NativeKernels(isa), ""))
        .orElseGet(() -> new Choice(null, "the processor has neither AVX2 with FMA nor more"));
  }

  private static int bestCode() {
    try {
      long[] sizes = {
        CallStruct.CALL_BYTES,
        CallStruct.SEGMENT_BYTES,
        CallStruct.TARGET_BYTES,
        CodedStruct.CODED_BYTES,
        CodedStruct.SOURCE_BYTES,
        RouteStruct.BYTES
      };
      for (int i = 0; i < sizes.length; i++) {
        long there = (long) NativeCalls.ABI.invokeExact(i);
        if (there != sizes[i]) {
          throw new IllegalStateException(
              "struct " + i + " of the kernels has " + there + " bytes, not " + sizes[i]);
        }
      }
      int best = (int) NativeCalls.ISA.invokeExact();
      LOG.debug("kernels in C: the machine offers {}", Isa.of(best));
      return best;
    } catch (Throwable t) {
      throw failed(t);
    }
  }

  /** {@return the instruction set} */
  public Isa isa() {
    return isa;
  }

  /** {@return its number for {@code struct moe_call}} */
  public int code() {
    return isa.code();
  }

  /**
   * {@return whether there are units that multiply bf16, for rows of that dtype}
   *
   * @param codes whether weights are codes, rather than bf16
   */
  public boolean multipliesBf16(boolean codes) {
    return isa.multipliesBf16() && !(codes && isa == Isa.NEONBF16);
  }

  /** {@return whether there are units that multiply int8, for rows that became so} */
  public boolean multipliesInt8() {
    try {
      return (int) NativeCalls.INT8.invokeExact(isa.code()) != 0;
    } catch (Throwable t) {
      throw failed(t);
    }
  }

  /**
   * Multiplies bf16 in registers.
   *
   * @param rounds some nanoseconds each
   * @return operations done; 0 if there are no units for them
   */
  public long peak(long rounds) {
    try {
      return (long) NativeCalls.PEAK.invokeExact(isa.code(), rounds);
    } catch (Throwable t) {
      throw failed(t);
    }
  }

  /** {@return what it is, for logs: {@code C kernels, AVX-512 BF16}} */
  public String description() {
    return "C kernels, " + isa.title();
  }

  /**
   * Copies rows of hidden states to positions {@code from..to-1}.
   *
   * @param call address of a {@code struct moe_call}
   * @param hidden may be on the heap
   * @param type its dtype
   * @param weight by pair, to scale rows, or null
   * @param firstToken of the chunk
   * @param from first position
   * @param to behind the last
   */
  public void gather(
      long call,
      MemorySegment hidden,
      DType type,
      @Nullable MemorySegment weight,
      long firstToken,
      long from,
      long to) {
    MemorySegment w = weight == null ? MemorySegment.NULL : weight;
    try {
      NativeCalls.GATHER.invokeExact(
          call, hidden, CallStruct.code(type), w, firstToken, from, to);
    } catch (Throwable t) {
      throw failed(t);
    }
  }

  /**
   * A's product for one segment: of gate and up, or of down.
   *
   * @param call address of a {@code struct moe_call}
   * @param segment its index
   * @param down which of the two
   */
  public void shrink(long call, long segment, boolean down) {
    try {
      NativeCalls.SHRINK.invokeExact(call, segment, down ? 1 : 0);
    } catch (Throwable t) {
      throw failed(t);
    }
  }

  /**
   * Copies rows of x or of the activations into the order of an expert's packed values of k.
   *
   * @param call address of a {@code struct moe_call}
   * @param down which of the two
   * @param expert whose order
   * @param from first position
   * @param to behind the last
   */
  public void reorder(long call, boolean down, long expert, long from, long to) {
    try {
      NativeCalls.REORDER.invokeExact(call, down ? 1 : 0, expert, from, to);
    } catch (Throwable t) {
      throw failed(t);
    }
  }

  /**
   * The w13 product with everything up to the activations, for some blocks.
   *
   * @param call address of a {@code struct moe_call}
   * @param expert whose weights
   * @param row first sorted position
   * @param rows positions, at most {@link CallStruct#MAX_ROWS}
   * @param block first block of outputs
   * @param blocks how many
   * @param segment first segment that the positions meet
   * @param segments how many
   */
  public void w13(
      long call,
      long expert,
      long row,
      long rows,
      long block,
      long blocks,
      long segment,
      long segments) {
    try {
      NativeCalls.W13.invokeExact(call, expert, row, rows, block, blocks, segment, segments);
    } catch (Throwable t) {
      throw failed(t);
    }
  }

  /**
   * The w2 product with bias and deltas, for some blocks.
   *
   * @param call address of a {@code struct moe_call}
   * @param expert whose weights
   * @param row first sorted position
   * @param rows positions, at most {@link CallStruct#MAX_ROWS}
   * @param block first block of outputs
   * @param blocks how many
   * @param segment first segment that the positions meet
   * @param segments how many
   */
  public void w2(
      long call,
      long expert,
      long row,
      long rows,
      long block,
      long blocks,
      long segment,
      long segments) {
    try {
      NativeCalls.W2.invokeExact(call, expert, row, rows, block, blocks, segment, segments);
    } catch (Throwable t) {
      throw failed(t);
    }
  }

  /**
   * Weighted sums of tokens {@code from..to-1} of the chunk.
   *
   * @param call address of a {@code struct moe_call}
   * @param weight by pair of the batch, or null for 1
   * @param firstToken of the chunk
   * @param from first token of the chunk
   * @param to behind the last
   * @param output may be on the heap
   * @param type its dtype
   */
  public void combine(
      long call,
      @Nullable MemorySegment weight,
      long firstToken,
      long from,
      long to,
      MemorySegment output,
      DType type) {
    MemorySegment w = weight == null ? MemorySegment.NULL : weight;
    try {
      NativeCalls.COMBINE.invokeExact(
          call, w, firstToken, from, to, output, CallStruct.code(type));
    } catch (Throwable t) {
      throw failed(t);
    }
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
          isa.code(), x, xCode, w, wCode, weightStride, b, y, yStride, in, from, to, out, outs);
    } catch (Throwable t) {
      throw failed(t);
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
          isa.code(), routed, s, f, half ? 1 : 0, b, output, code, hidden, from, to);
    } catch (Throwable t) {
      throw failed(t);
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
      NativeCalls.ROUTE.invokeExact(isa.code(), how, logits, b, s, ids, weights, from, to);
    } catch (Throwable t) {
      throw failed(t);
    }
  }

  /**
   * Packs a block of 32 outputs: {@code n0} rows of one matrix and {@code n1} of another, padded
   * with zeros.
   *
   * @param to address of the block
   * @param type dtype of both
   * @param k columns
   * @param padded columns of the block
   * @param m0 first row of the first half; may be on the heap
   * @param stride0 from one row to the next
   * @param n0 0 to 16
   * @param m1 likewise second half
   * @param stride1 likewise
   * @param n1 likewise
   */
  public void pack(
      long to,
      DType type,
      long k,
      long padded,
      MemorySegment m0,
      long stride0,
      long n0,
      MemorySegment m1,
      long stride1,
      long n1) {
    int code = CallStruct.code(type);
    try {
      if (m0.isNative() && m1.isNative()) {
        NativeCalls.PACK.invokeExact(to, code, k, padded, m0, stride0, n0, m1, stride1, n1);
      } else {
        NativeCalls.PACK_HEAP.invokeExact(to, code, k, padded, m0, stride0, n0, m1, stride1, n1);
      }
    } catch (Throwable t) {
      throw failed(t);
    }
  }

  /**
   * Packs a block of 32 outputs in codes: {@code n0} rows of one matrix and {@code n1} of another.
   *
   * @param to address of the block
   * @param coded a {@code struct moe_coded}
   * @param k columns
   * @param padded columns of the block
   * @param m0 a {@code struct moe_source}
   * @param row0 first row of the first half
   * @param n0 0 to 16
   * @param m1 likewise second half
   * @param row1 likewise
   * @param n1 likewise
   * @return whether all codes and scales are numbers
   */
  public boolean packCoded(
      long to,
      MemorySegment coded,
      long k,
      long padded,
      MemorySegment m0,
      long row0,
      long n0,
      MemorySegment m1,
      long row1,
      long n1) {
    try {
      return (int)
              NativeCalls.PACK_CODED.invokeExact(
                  to, coded, k, padded, m0, row0, n0, m1, row1, n1)
          == 0;
    } catch (Throwable t) {
      throw failed(t);
    }
  }

  private static RuntimeException failed(Throwable t) {
    if (t instanceof Error e) {
      throw e;
    }
    return t instanceof RuntimeException e ? e : new IllegalStateException(t);
  }
}
