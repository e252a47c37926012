package io.moe4j.backend.cpu.kernel;

import io.moe4j.api.tensor.DType;
import java.lang.foreign.MemorySegment;
import java.lang.invoke.MethodHandles;
import java.nio.ByteOrder;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.VectorMask;
import jdk.incubator.vector.VectorOperators;
import jdk.incubator.vector.VectorSpecies;

/**
 * LoRA's B times shrunk tokens, for B of one dtype, a {@link VectorTemplate}. Where rows lie side
 * by side, four of the rank pass at a time over one or two tokens. Where ranks do, a row is one or
 * a few vectors: four rows are multiplied, then folded pairwise to four results, without leaving
 * the registers.
 */
final class VectorExpand implements ExpandKernel {
  private static final VectorTemplate DATA = VectorTemplate.data(MethodHandles.lookup());
  private static final DType TYPE = DATA.dtype();

  /** Of B. */
  private static final Class<?> MEMORY = DATA.memory();

  private static final VectorSpecies<Float> F = VectorWidth.F;
  private static final int VL = F.length();
  private static final VectorSpecies<Float> FOUR = FloatVector.SPECIES_128;

  /** {@code 0, 1, 2, ..} */
  private static final FloatVector LANE = FloatVector.zero(F).addIndex(1);

  private static final ByteOrder LE = ByteOrder.LITTLE_ENDIAN;
  private static final int BYTES = TYPE.bits() / 8;

  /** Rows that meet all tokens before the next come: they fit a first-level cache. */
  private static final int PIECE_ROWS = 128;

  /** Likewise, where rows lie side by side. */
  private static final int PIECE_COLUMNS = 1024;

  private VectorExpand() {}

  @Override
  public void expand(
      MemorySegment b,
      long bOffset,
      long rowStep,
      long rankStep,
      int rows,
      int rank,
      MemorySegment s,
      long sOffset,
      long sStep,
      MemorySegment dst,
      long[] at,
      int tokens,
      boolean add) {
    boolean known =
        b.getClass() == MEMORY
            && s.getClass() == SegmentClass.NATIVE
            && dst.getClass() == SegmentClass.NATIVE;
    boolean columns = known && rowStep == BYTES;
    boolean dense = known && rankStep == BYTES;
    // A piece of B meets all tokens before the next comes.
    int most = columns ? (tokens <= 2 ? rows : PIECE_COLUMNS) : PIECE_ROWS;
    for (int i = 0; i < rows; i += most) {
      int n = Math.min(most, rows - i);
      long b0 = bOffset + i * rowStep;
      if (columns) {
        byColumns(b, b0, rankStep, n, rank, s, sOffset, sStep, dst, at, tokens, 4L * i, add);
        continue;
      }
      for (int j = 0; j < tokens; j++) {
        long q = sOffset + j * sStep;
        long d = at[j] + 4L * i;
        int done = dense ? byRows(b, b0, rowStep, n, rank, s, q, dst, d, add) : 0;
        ScalarKernels.expand(TYPE, b, b0, rowStep, rankStep, done, n, rank, s, q, dst, d, add);
      }
    }
  }

  /** Ranks side by side: as many rows as go by whole vectors, which it returns. */
  private static int byRows(
      MemorySegment b,
      long b0,
      long rowStep,
      int rows,
      int rank,
      MemorySegment s,
      long s0,
      MemorySegment dst,
      long d0,
      boolean add) {
    int whole = rows / 4 * 4;
    if (rank % VL != 0) {
      whole = Math.min(whole, within(b, b0, rowStep, rank) / 4 * 4);
      whole = s0 + 4L * rank + 4L * VL <= s.byteSize() ? whole : 0;
    }
    if (rank == VL) {
      oneVector(b, b0, rowStep, whole, s, s0, dst, d0, add);
    } else {
      someVectors(b, b0, rowStep, whole, rank, s, s0, dst, d0, add);
    }
    return whole;
  }

  /** Rows side by side: nothing is summed across a vector. */
  private static void byColumns(
      MemorySegment b,
      long b0,
      long rankStep,
      int n,
      int rank,
      MemorySegment s,
      long sOffset,
      long sStep,
      MemorySegment dst,
      long[] at,
      int tokens,
      long dstOffset,
      boolean add) {
    int bound = F.loopBound(n);
    int whole = rank / 4 * 4;
    for (int r = 0; r < whole; r += 4) {
      long row = b0 + r * rankStep;
      long q = sOffset + 4L * r;
      boolean sum = add || r > 0;
      for (int j = 0; j < tokens; j += 2) {
        long qj = q + j * sStep;
        long d0 = at[j] + dstOffset;
        if (j + 1 < tokens) {
          long d1 = at[j + 1] + dstOffset;
          four2(b, row, rankStep, bound, s, qj, sStep, dst, d0, d1, sum);
        } else {
          four1(b, row, rankStep, bound, s, qj, dst, d0, sum);
        }
      }
    }
    for (int j = 0; j < tokens; j++) {
      long q = sOffset + j * sStep;
      long d = at[j] + dstOffset;
      for (int r = whole; r < rank; r++) {
        float f = s.get(ScalarKernels.F32, q + 4L * r);
        one(b, b0 + r * rankStep, bound, f, dst, d, add || r > 0);
      }
      ScalarKernels.expand(TYPE, b, b0, BYTES, rankStep, bound, n, rank, s, q, dst, d, add);
    }
  }

  /** How many rows there are whose last vector, not filled by the rank, ends within B's memory. */
  private static int within(MemorySegment b, long bOffset, long bStride, int rank) {
    long reach = (long) BYTES * VL * Math.ceilDiv(rank, VL);
    long room = b.byteSize() - bOffset - reach;
    if (room < 0) {
      return 0;
    }
    return bStride <= 0 ? 1 : (int) Math.min(Integer.MAX_VALUE, room / bStride + 1);
  }

  private static FloatVector load(MemorySegment s, long offset) {
    if (TYPE == DType.F32) {
      return VectorLoads.f32(s, offset);
    }
    return TYPE == DType.BF16 ? VectorLoads.bf16(s, offset) : VectorLoads.f16(s, offset);
  }

  private static void store(FloatVector sums, MemorySegment dst, long d, boolean add) {
    FloatVector v = (FloatVector) sums.reinterpretShape(FOUR, 0);
    if (add) {
      v = v.add(FloatVector.fromMemorySegment(FOUR, dst, d, LE));
    }
    v.intoMemorySegment(dst, d, LE);
  }

  /** The rank is one vector. */
  private static void oneVector(
      MemorySegment b,
      long b0,
      long stride,
      int rows,
      MemorySegment s,
      long s0,
      MemorySegment dst,
      long d0,
      boolean add) {
    b = SegmentClass.known(b, MEMORY);
    s = SegmentClass.known(s, SegmentClass.NATIVE);
    dst = SegmentClass.known(dst, SegmentClass.NATIVE);
    FloatVector v = FloatVector.fromMemorySegment(F, s, s0, LE);
    for (int i = 0; i < rows; i += 4) {
      long at = b0 + i * stride;
      FloatVector a0 = load(b, at).mul(v);
      FloatVector a1 = load(b, at + stride).mul(v);
      FloatVector a2 = load(b, at + 2 * stride).mul(v);
      FloatVector a3 = load(b, at + 3 * stride).mul(v);
      store(Lanes.fold4(a0, a1, a2, a3), dst, d0 + 4L * i, add);
    }
  }

  private static void someVectors(
      MemorySegment b,
      long b0,
      long stride,
      int rows,
      int rank,
      MemorySegment s,
      long s0,
      MemorySegment dst,
      long d0,
      boolean add) {
    b = SegmentClass.known(b, MEMORY);
    s = SegmentClass.known(s, SegmentClass.NATIVE);
    dst = SegmentClass.known(dst, SegmentClass.NATIVE);
    for (int i = 0; i < rows; i += 4) {
      long at = b0 + i * stride;
      FloatVector a0 = FloatVector.zero(F);
      FloatVector a1 = a0;
      FloatVector a2 = a0;
      FloatVector a3 = a0;
      for (int r = 0; r < rank; r += VL) {
        // Of a last vector that the rank does not fill, the rest is another row's: not to be added,
        // and not to be multiplied either, it may be infinite.
        VectorMask<Float> beyond = LANE.compare(VectorOperators.GE, rank - r);
        FloatVector v = FloatVector.fromMemorySegment(F, s, s0 + 4L * r, LE).blend(0f, beyond);
        long q = at + (long) BYTES * r;
        a0 = load(b, q).blend(0f, beyond).fma(v, a0);
        a1 = load(b, q + stride).blend(0f, beyond).fma(v, a1);
        a2 = load(b, q + 2 * stride).blend(0f, beyond).fma(v, a2);
        a3 = load(b, q + 3 * stride).blend(0f, beyond).fma(v, a3);
      }
      store(Lanes.fold4(a0, a1, a2, a3), dst, d0 + 4L * i, add);
    }
  }

  private static FloatVector factor(MemorySegment s, long at) {
    return FloatVector.broadcast(F, s.get(ScalarKernels.F32, at));
  }

  private static FloatVector before(MemorySegment dst, long at, boolean add) {
    return add ? FloatVector.fromMemorySegment(F, dst, at, LE) : FloatVector.zero(F);
  }

  /** Four of the rank, one token. */
  private static void four1(
      MemorySegment b,
      long b0,
      long stride,
      int n,
      MemorySegment s,
      long s0,
      MemorySegment dst,
      long d0,
      boolean add) {
    b = SegmentClass.known(b, MEMORY);
    s = SegmentClass.known(s, SegmentClass.NATIVE);
    dst = SegmentClass.known(dst, SegmentClass.NATIVE);
    FloatVector f0 = factor(s, s0);
    FloatVector f1 = factor(s, s0 + 4);
    FloatVector f2 = factor(s, s0 + 8);
    FloatVector f3 = factor(s, s0 + 12);
    for (int i = 0; i < n; i += VL) {
      long at = b0 + (long) BYTES * i;
      FloatVector x = load(b, at).fma(f0, before(dst, d0 + 4L * i, add));
      FloatVector y = load(b, at + stride).mul(f1);
      x = load(b, at + 2 * stride).fma(f2, x);
      y = load(b, at + 3 * stride).fma(f3, y);
      x.add(y).intoMemorySegment(dst, d0 + 4L * i, LE);
    }
  }

  /** Four of the rank, two tokens. */
  private static void four2(
      MemorySegment b,
      long b0,
      long stride,
      int n,
      MemorySegment s,
      long s0,
      long sStride,
      MemorySegment dst,
      long d0,
      long d1,
      boolean add) {
    b = SegmentClass.known(b, MEMORY);
    s = SegmentClass.known(s, SegmentClass.NATIVE);
    dst = SegmentClass.known(dst, SegmentClass.NATIVE);
    FloatVector f0 = factor(s, s0);
    FloatVector f1 = factor(s, s0 + 4);
    FloatVector f2 = factor(s, s0 + 8);
    FloatVector f3 = factor(s, s0 + 12);
    FloatVector g0 = factor(s, s0 + sStride);
    FloatVector g1 = factor(s, s0 + sStride + 4);
    FloatVector g2 = factor(s, s0 + sStride + 8);
    FloatVector g3 = factor(s, s0 + sStride + 12);
    for (int i = 0; i < n; i += VL) {
      long at = b0 + (long) BYTES * i;
      FloatVector r0 = load(b, at);
      FloatVector r1 = load(b, at + stride);
      FloatVector r2 = load(b, at + 2 * stride);
      FloatVector r3 = load(b, at + 3 * stride);
      FloatVector x = r0.fma(f0, before(dst, d0 + 4L * i, add));
      FloatVector y = r0.fma(g0, before(dst, d1 + 4L * i, add));
      x = r2.fma(f2, x).add(r3.fma(f3, r1.mul(f1)));
      y = r2.fma(g2, y).add(r3.fma(g3, r1.mul(g1)));
      x.intoMemorySegment(dst, d0 + 4L * i, LE);
      y.intoMemorySegment(dst, d1 + 4L * i, LE);
    }
  }

  /** One of the rank, one token. */
  private static void one(
      MemorySegment b, long b0, int n, float s, MemorySegment dst, long d0, boolean add) {
    b = SegmentClass.known(b, MEMORY);
    dst = SegmentClass.known(dst, SegmentClass.NATIVE);
    FloatVector f = FloatVector.broadcast(F, s);
    for (int i = 0; i < n; i += VL) {
      long d = d0 + 4L * i;
      load(b, b0 + (long) BYTES * i).fma(f, before(dst, d, add)).intoMemorySegment(dst, d, LE);
    }
  }
}
