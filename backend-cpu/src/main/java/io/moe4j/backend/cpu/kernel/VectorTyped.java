package io.moe4j.backend.cpu.kernel;

import io.moe4j.api.tensor.DType;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.lang.foreign.MemorySegment;
import java.lang.invoke.MethodHandles;
import java.nio.ByteOrder;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.IntVector;
import jdk.incubator.vector.ShortVector;
import jdk.incubator.vector.VectorMask;
import jdk.incubator.vector.VectorOperators;
import jdk.incubator.vector.VectorShape;
import jdk.incubator.vector.VectorSpecies;

/**
 * Vector kernels over matrices of one dtype. The class is a template: {@link #of} defines it once
 * per dtype as a hidden class whose class data is the dtype, so that {@link #TYPE} is a constant to
 * the compiler, the loops of one dtype hold no trace of the others, and their profiles do not mix.
 *
 * <p>{@code dot} works on blocks of four rows and up to four vectors: sixteen accumulators, eight
 * loads for sixteen multiply-adds, and four sequential streams of weights, which is what keeps the
 * memory busy. Elements that do not fill a vector are added one by one.
 */
final class VectorTyped implements TypedKernels {
  private static final DType TYPE = classData();

  private static final VectorSpecies<Float> F = FloatVector.SPECIES_PREFERRED;
  private static final VectorSpecies<Integer> I = IntVector.SPECIES_PREFERRED;
  private static final VectorSpecies<Short> S =
      VectorSpecies.of(short.class, VectorShape.forBitSize(F.vectorBitSize() / 2));
  private static final int VL = F.length();
  private static final ByteOrder LE = ByteOrder.LITTLE_ENDIAN;
  private static final int BYTES = TYPE.bits() / 8;

  private VectorTyped() {}

  private static DType classData() {
    try {
      DType type = MethodHandles.classData(MethodHandles.lookup(), "_", DType.class);
      return type == null ? DType.F32 : type;
    } catch (IllegalAccessException e) {
      throw new IllegalStateException(e);
    }
  }

  /** The template for one dtype. */
  static TypedKernels of(DType dtype) {
    ScalarKernels.requireFloat(dtype);
    try (InputStream in = VectorTyped.class.getResourceAsStream("VectorTyped.class")) {
      if (in == null) {
        throw new IllegalStateException(
            "the class file of " + VectorTyped.class + " is not at hand");
      }
      MethodHandles.Lookup lookup =
          MethodHandles.lookup().defineHiddenClassWithClassData(in.readAllBytes(), dtype, true);
      return (TypedKernels)
          lookup
              .findConstructor(
                  lookup.lookupClass(), java.lang.invoke.MethodType.methodType(void.class))
              .invoke();
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    } catch (RuntimeException | Error e) {
      throw e;
    } catch (Throwable e) {
      throw new IllegalStateException(e);
    }
  }

  /** A vector of consecutive elements, widened exactly. */
  private static FloatVector load(MemorySegment s, long offset) {
    if (TYPE == DType.F32) {
      return FloatVector.fromMemorySegment(F, s, offset, LE);
    }
    ShortVector raw = ShortVector.fromMemorySegment(S, s, offset, LE);
    IntVector v = (IntVector) raw.convertShape(VectorOperators.ZERO_EXTEND_S2I, I, 0);
    if (TYPE == DType.BF16) {
      return v.lanewise(VectorOperators.LSHL, 16).reinterpretAsFloats();
    }
    return widenF16(v);
  }

  /**
   * binary16 in the low halves of ints. Adding 112 to the exponent is right for normal numbers;
   * subnormals get an implicit one and lose it again in an exact subtraction, which never touches a
   * subnormal float (those are slow); infinities and NaN get the exponent pushed to the end.
   */
  private static FloatVector widenF16(IntVector v) {
    IntVector a = v.and(0x7fff).lanewise(VectorOperators.LSHL, 13);
    IntVector sign = v.and(0x8000).lanewise(VectorOperators.LSHL, 16);
    VectorMask<Integer> small = a.compare(VectorOperators.LT, 1 << 23);
    VectorMask<Integer> special = a.compare(VectorOperators.GE, 31 << 23);
    IntVector normal = a.add(112 << 23);
    IntVector subnormal = a.add(113 << 23).reinterpretAsFloats().sub(0x1p-14f).reinterpretAsInts();
    IntVector bits = normal.blend(subnormal, small).blend(a.add(224 << 23), special);
    return bits.or(sign).reinterpretAsFloats();
  }

  private static float readOne(MemorySegment s, long offset, long i) {
    return ScalarKernels.read(TYPE, s, offset, i);
  }

  @Override
  public void dot(
      MemorySegment w,
      long wOffset,
      long wStride,
      int rows,
      MemorySegment x,
      long x0,
      long x1,
      long x2,
      long x3,
      int tokens,
      int k,
      MemorySegment out,
      long outOffset,
      long outStride) {
    int bound = F.loopBound(k);
    int r = 0;
    for (; r + 4 <= rows; r += 4) {
      long row = wOffset + r * wStride;
      long o = outOffset + 4L * r;
      switch (tokens) {
        case 1 -> dot4x1(w, row, wStride, x, x0, bound, out, o);
        case 2 -> dot4x2(w, row, wStride, x, x0, x1, bound, out, o, outStride);
        case 3 -> dot4x3(w, row, wStride, x, x0, x1, x2, bound, out, o, outStride);
        default -> dot4x4(w, row, wStride, x, x0, x1, x2, x3, bound, out, o, outStride);
      }
    }
    for (; r < rows; r++) {
      for (int j = 0; j < tokens; j++) {
        long xj = j == 0 ? x0 : j == 1 ? x1 : j == 2 ? x2 : x3;
        dot1x1(w, wOffset + r * wStride, x, xj, bound, out, outOffset + 4L * r + j * outStride);
      }
    }
    if (bound < k) {
      for (r = 0; r < rows; r++) {
        for (int j = 0; j < tokens; j++) {
          long xj = j == 0 ? x0 : j == 1 ? x1 : j == 2 ? x2 : x3;
          long o = outOffset + 4L * r + j * outStride;
          out.set(
              ScalarKernels.F32,
              o,
              out.get(ScalarKernels.F32, o) + rest(w, wOffset + r * wStride, x, xj, bound, k));
        }
      }
    }
  }

  @Override
  public void dotMany(
      MemorySegment w,
      long wOffset,
      long wStride,
      int rows,
      MemorySegment x,
      long[] at,
      int tokens,
      int k,
      MemorySegment out,
      long outOffset,
      long outStride) {
    int bound = F.loopBound(k);
    int r = 0;
    for (; r + 2 <= rows; r += 2) {
      long row = wOffset + r * wStride;
      long o = outOffset + 4L * r;
      switch (tokens) {
        case 5 -> dot2x5(w, row, wStride, x, at, bound, out, o, outStride);
        case 6 -> dot2x6(w, row, wStride, x, at, bound, out, o, outStride);
        case 7 -> dot2x7(w, row, wStride, x, at, bound, out, o, outStride);
        default -> dot2x8(w, row, wStride, x, at, bound, out, o, outStride);
      }
    }
    for (; r < rows; r++) {
      for (int j = 0; j < tokens; j++) {
        dot1x1(w, wOffset + r * wStride, x, at[j], bound, out, outOffset + 4L * r + j * outStride);
      }
    }
    if (bound < k) {
      for (r = 0; r < rows; r++) {
        for (int j = 0; j < tokens; j++) {
          long o = outOffset + 4L * r + j * outStride;
          out.set(
              ScalarKernels.F32,
              o,
              out.get(ScalarKernels.F32, o) + rest(w, wOffset + r * wStride, x, at[j], bound, k));
        }
      }
    }
  }

  /** The elements behind the last whole vector. */
  private static float rest(MemorySegment w, long w0, MemorySegment x, long x0, int from, int k) {
    float sum = 0;
    for (int i = from; i < k; i++) {
      sum += readOne(w, w0, i) * x.get(ScalarKernels.F32, x0 + 4L * i);
    }
    return sum;
  }

  private static void dot4x1(
      MemorySegment w,
      long w0,
      long wStride,
      MemorySegment x,
      long x0,
      int bound,
      MemorySegment out,
      long o) {
    long w1 = w0 + wStride;
    long w2 = w1 + wStride;
    long w3 = w2 + wStride;
    FloatVector s00 = FloatVector.zero(F);
    FloatVector s10 = FloatVector.zero(F);
    FloatVector s20 = FloatVector.zero(F);
    FloatVector s30 = FloatVector.zero(F);
    for (int k = 0; k < bound; k += VL) {
      FloatVector a0 = load(w, w0 + (long) BYTES * k);
      FloatVector a1 = load(w, w1 + (long) BYTES * k);
      FloatVector a2 = load(w, w2 + (long) BYTES * k);
      FloatVector a3 = load(w, w3 + (long) BYTES * k);
      FloatVector v0 = FloatVector.fromMemorySegment(F, x, x0 + 4L * k, LE);
      s00 = a0.fma(v0, s00);
      s10 = a1.fma(v0, s10);
      s20 = a2.fma(v0, s20);
      s30 = a3.fma(v0, s30);
    }
    out.set(ScalarKernels.F32, o, Lanes.sum(s00));
    out.set(ScalarKernels.F32, o + 4, Lanes.sum(s10));
    out.set(ScalarKernels.F32, o + 8, Lanes.sum(s20));
    out.set(ScalarKernels.F32, o + 12, Lanes.sum(s30));
  }

  private static void dot4x2(
      MemorySegment w,
      long w0,
      long wStride,
      MemorySegment x,
      long x0,
      long x1,
      int bound,
      MemorySegment out,
      long o,
      long os) {
    long w1 = w0 + wStride;
    long w2 = w1 + wStride;
    long w3 = w2 + wStride;
    FloatVector s00 = FloatVector.zero(F);
    FloatVector s01 = FloatVector.zero(F);
    FloatVector s10 = FloatVector.zero(F);
    FloatVector s11 = FloatVector.zero(F);
    FloatVector s20 = FloatVector.zero(F);
    FloatVector s21 = FloatVector.zero(F);
    FloatVector s30 = FloatVector.zero(F);
    FloatVector s31 = FloatVector.zero(F);
    for (int k = 0; k < bound; k += VL) {
      FloatVector a0 = load(w, w0 + (long) BYTES * k);
      FloatVector a1 = load(w, w1 + (long) BYTES * k);
      FloatVector a2 = load(w, w2 + (long) BYTES * k);
      FloatVector a3 = load(w, w3 + (long) BYTES * k);
      FloatVector v0 = FloatVector.fromMemorySegment(F, x, x0 + 4L * k, LE);
      s00 = a0.fma(v0, s00);
      s10 = a1.fma(v0, s10);
      s20 = a2.fma(v0, s20);
      s30 = a3.fma(v0, s30);
      FloatVector v1 = FloatVector.fromMemorySegment(F, x, x1 + 4L * k, LE);
      s01 = a0.fma(v1, s01);
      s11 = a1.fma(v1, s11);
      s21 = a2.fma(v1, s21);
      s31 = a3.fma(v1, s31);
    }
    out.set(ScalarKernels.F32, o, Lanes.sum(s00));
    out.set(ScalarKernels.F32, o + 4, Lanes.sum(s10));
    out.set(ScalarKernels.F32, o + 8, Lanes.sum(s20));
    out.set(ScalarKernels.F32, o + 12, Lanes.sum(s30));
    out.set(ScalarKernels.F32, o + os, Lanes.sum(s01));
    out.set(ScalarKernels.F32, o + os + 4, Lanes.sum(s11));
    out.set(ScalarKernels.F32, o + os + 8, Lanes.sum(s21));
    out.set(ScalarKernels.F32, o + os + 12, Lanes.sum(s31));
  }

  private static void dot4x3(
      MemorySegment w,
      long w0,
      long wStride,
      MemorySegment x,
      long x0,
      long x1,
      long x2,
      int bound,
      MemorySegment out,
      long o,
      long os) {
    long w1 = w0 + wStride;
    long w2 = w1 + wStride;
    long w3 = w2 + wStride;
    FloatVector s00 = FloatVector.zero(F);
    FloatVector s01 = FloatVector.zero(F);
    FloatVector s02 = FloatVector.zero(F);
    FloatVector s10 = FloatVector.zero(F);
    FloatVector s11 = FloatVector.zero(F);
    FloatVector s12 = FloatVector.zero(F);
    FloatVector s20 = FloatVector.zero(F);
    FloatVector s21 = FloatVector.zero(F);
    FloatVector s22 = FloatVector.zero(F);
    FloatVector s30 = FloatVector.zero(F);
    FloatVector s31 = FloatVector.zero(F);
    FloatVector s32 = FloatVector.zero(F);
    for (int k = 0; k < bound; k += VL) {
      FloatVector a0 = load(w, w0 + (long) BYTES * k);
      FloatVector a1 = load(w, w1 + (long) BYTES * k);
      FloatVector a2 = load(w, w2 + (long) BYTES * k);
      FloatVector a3 = load(w, w3 + (long) BYTES * k);
      FloatVector v0 = FloatVector.fromMemorySegment(F, x, x0 + 4L * k, LE);
      s00 = a0.fma(v0, s00);
      s10 = a1.fma(v0, s10);
      s20 = a2.fma(v0, s20);
      s30 = a3.fma(v0, s30);
      FloatVector v1 = FloatVector.fromMemorySegment(F, x, x1 + 4L * k, LE);
      s01 = a0.fma(v1, s01);
      s11 = a1.fma(v1, s11);
      s21 = a2.fma(v1, s21);
      s31 = a3.fma(v1, s31);
      FloatVector v2 = FloatVector.fromMemorySegment(F, x, x2 + 4L * k, LE);
      s02 = a0.fma(v2, s02);
      s12 = a1.fma(v2, s12);
      s22 = a2.fma(v2, s22);
      s32 = a3.fma(v2, s32);
    }
    out.set(ScalarKernels.F32, o, Lanes.sum(s00));
    out.set(ScalarKernels.F32, o + 4, Lanes.sum(s10));
    out.set(ScalarKernels.F32, o + 8, Lanes.sum(s20));
    out.set(ScalarKernels.F32, o + 12, Lanes.sum(s30));
    out.set(ScalarKernels.F32, o + os, Lanes.sum(s01));
    out.set(ScalarKernels.F32, o + os + 4, Lanes.sum(s11));
    out.set(ScalarKernels.F32, o + os + 8, Lanes.sum(s21));
    out.set(ScalarKernels.F32, o + os + 12, Lanes.sum(s31));
    out.set(ScalarKernels.F32, o + 2 * os, Lanes.sum(s02));
    out.set(ScalarKernels.F32, o + 2 * os + 4, Lanes.sum(s12));
    out.set(ScalarKernels.F32, o + 2 * os + 8, Lanes.sum(s22));
    out.set(ScalarKernels.F32, o + 2 * os + 12, Lanes.sum(s32));
  }

  private static void dot4x4(
      MemorySegment w,
      long w0,
      long wStride,
      MemorySegment x,
      long x0,
      long x1,
      long x2,
      long x3,
      int bound,
      MemorySegment out,
      long o,
      long os) {
    long w1 = w0 + wStride;
    long w2 = w1 + wStride;
    long w3 = w2 + wStride;
    FloatVector s00 = FloatVector.zero(F);
    FloatVector s01 = FloatVector.zero(F);
    FloatVector s02 = FloatVector.zero(F);
    FloatVector s03 = FloatVector.zero(F);
    FloatVector s10 = FloatVector.zero(F);
    FloatVector s11 = FloatVector.zero(F);
    FloatVector s12 = FloatVector.zero(F);
    FloatVector s13 = FloatVector.zero(F);
    FloatVector s20 = FloatVector.zero(F);
    FloatVector s21 = FloatVector.zero(F);
    FloatVector s22 = FloatVector.zero(F);
    FloatVector s23 = FloatVector.zero(F);
    FloatVector s30 = FloatVector.zero(F);
    FloatVector s31 = FloatVector.zero(F);
    FloatVector s32 = FloatVector.zero(F);
    FloatVector s33 = FloatVector.zero(F);
    for (int k = 0; k < bound; k += VL) {
      FloatVector a0 = load(w, w0 + (long) BYTES * k);
      FloatVector a1 = load(w, w1 + (long) BYTES * k);
      FloatVector a2 = load(w, w2 + (long) BYTES * k);
      FloatVector a3 = load(w, w3 + (long) BYTES * k);
      FloatVector v0 = FloatVector.fromMemorySegment(F, x, x0 + 4L * k, LE);
      s00 = a0.fma(v0, s00);
      s10 = a1.fma(v0, s10);
      s20 = a2.fma(v0, s20);
      s30 = a3.fma(v0, s30);
      FloatVector v1 = FloatVector.fromMemorySegment(F, x, x1 + 4L * k, LE);
      s01 = a0.fma(v1, s01);
      s11 = a1.fma(v1, s11);
      s21 = a2.fma(v1, s21);
      s31 = a3.fma(v1, s31);
      FloatVector v2 = FloatVector.fromMemorySegment(F, x, x2 + 4L * k, LE);
      s02 = a0.fma(v2, s02);
      s12 = a1.fma(v2, s12);
      s22 = a2.fma(v2, s22);
      s32 = a3.fma(v2, s32);
      FloatVector v3 = FloatVector.fromMemorySegment(F, x, x3 + 4L * k, LE);
      s03 = a0.fma(v3, s03);
      s13 = a1.fma(v3, s13);
      s23 = a2.fma(v3, s23);
      s33 = a3.fma(v3, s33);
    }
    out.set(ScalarKernels.F32, o, Lanes.sum(s00));
    out.set(ScalarKernels.F32, o + 4, Lanes.sum(s10));
    out.set(ScalarKernels.F32, o + 8, Lanes.sum(s20));
    out.set(ScalarKernels.F32, o + 12, Lanes.sum(s30));
    out.set(ScalarKernels.F32, o + os, Lanes.sum(s01));
    out.set(ScalarKernels.F32, o + os + 4, Lanes.sum(s11));
    out.set(ScalarKernels.F32, o + os + 8, Lanes.sum(s21));
    out.set(ScalarKernels.F32, o + os + 12, Lanes.sum(s31));
    out.set(ScalarKernels.F32, o + 2 * os, Lanes.sum(s02));
    out.set(ScalarKernels.F32, o + 2 * os + 4, Lanes.sum(s12));
    out.set(ScalarKernels.F32, o + 2 * os + 8, Lanes.sum(s22));
    out.set(ScalarKernels.F32, o + 2 * os + 12, Lanes.sum(s32));
    out.set(ScalarKernels.F32, o + 3 * os, Lanes.sum(s03));
    out.set(ScalarKernels.F32, o + 3 * os + 4, Lanes.sum(s13));
    out.set(ScalarKernels.F32, o + 3 * os + 8, Lanes.sum(s23));
    out.set(ScalarKernels.F32, o + 3 * os + 12, Lanes.sum(s33));
  }

  private static void dot2x5(
      MemorySegment w,
      long w0,
      long wStride,
      MemorySegment x,
      long[] at,
      int bound,
      MemorySegment out,
      long o,
      long os) {
    long w1 = w0 + wStride;
    long x0 = at[0];
    long x1 = at[1];
    long x2 = at[2];
    long x3 = at[3];
    long x4 = at[4];
    FloatVector s00 = FloatVector.zero(F);
    FloatVector s01 = FloatVector.zero(F);
    FloatVector s02 = FloatVector.zero(F);
    FloatVector s03 = FloatVector.zero(F);
    FloatVector s04 = FloatVector.zero(F);
    FloatVector s10 = FloatVector.zero(F);
    FloatVector s11 = FloatVector.zero(F);
    FloatVector s12 = FloatVector.zero(F);
    FloatVector s13 = FloatVector.zero(F);
    FloatVector s14 = FloatVector.zero(F);
    for (int k = 0; k < bound; k += VL) {
      FloatVector a0 = load(w, w0 + (long) BYTES * k);
      FloatVector a1 = load(w, w1 + (long) BYTES * k);
      FloatVector v0 = FloatVector.fromMemorySegment(F, x, x0 + 4L * k, LE);
      s00 = a0.fma(v0, s00);
      s10 = a1.fma(v0, s10);
      FloatVector v1 = FloatVector.fromMemorySegment(F, x, x1 + 4L * k, LE);
      s01 = a0.fma(v1, s01);
      s11 = a1.fma(v1, s11);
      FloatVector v2 = FloatVector.fromMemorySegment(F, x, x2 + 4L * k, LE);
      s02 = a0.fma(v2, s02);
      s12 = a1.fma(v2, s12);
      FloatVector v3 = FloatVector.fromMemorySegment(F, x, x3 + 4L * k, LE);
      s03 = a0.fma(v3, s03);
      s13 = a1.fma(v3, s13);
      FloatVector v4 = FloatVector.fromMemorySegment(F, x, x4 + 4L * k, LE);
      s04 = a0.fma(v4, s04);
      s14 = a1.fma(v4, s14);
    }
    out.set(ScalarKernels.F32, o, Lanes.sum(s00));
    out.set(ScalarKernels.F32, o + 4, Lanes.sum(s10));
    out.set(ScalarKernels.F32, o + os, Lanes.sum(s01));
    out.set(ScalarKernels.F32, o + os + 4, Lanes.sum(s11));
    out.set(ScalarKernels.F32, o + 2 * os, Lanes.sum(s02));
    out.set(ScalarKernels.F32, o + 2 * os + 4, Lanes.sum(s12));
    out.set(ScalarKernels.F32, o + 3 * os, Lanes.sum(s03));
    out.set(ScalarKernels.F32, o + 3 * os + 4, Lanes.sum(s13));
    out.set(ScalarKernels.F32, o + 4 * os, Lanes.sum(s04));
    out.set(ScalarKernels.F32, o + 4 * os + 4, Lanes.sum(s14));
  }

  private static void dot2x6(
      MemorySegment w,
      long w0,
      long wStride,
      MemorySegment x,
      long[] at,
      int bound,
      MemorySegment out,
      long o,
      long os) {
    long w1 = w0 + wStride;
    long x0 = at[0];
    long x1 = at[1];
    long x2 = at[2];
    long x3 = at[3];
    long x4 = at[4];
    long x5 = at[5];
    FloatVector s00 = FloatVector.zero(F);
    FloatVector s01 = FloatVector.zero(F);
    FloatVector s02 = FloatVector.zero(F);
    FloatVector s03 = FloatVector.zero(F);
    FloatVector s04 = FloatVector.zero(F);
    FloatVector s05 = FloatVector.zero(F);
    FloatVector s10 = FloatVector.zero(F);
    FloatVector s11 = FloatVector.zero(F);
    FloatVector s12 = FloatVector.zero(F);
    FloatVector s13 = FloatVector.zero(F);
    FloatVector s14 = FloatVector.zero(F);
    FloatVector s15 = FloatVector.zero(F);
    for (int k = 0; k < bound; k += VL) {
      FloatVector a0 = load(w, w0 + (long) BYTES * k);
      FloatVector a1 = load(w, w1 + (long) BYTES * k);
      FloatVector v0 = FloatVector.fromMemorySegment(F, x, x0 + 4L * k, LE);
      s00 = a0.fma(v0, s00);
      s10 = a1.fma(v0, s10);
      FloatVector v1 = FloatVector.fromMemorySegment(F, x, x1 + 4L * k, LE);
      s01 = a0.fma(v1, s01);
      s11 = a1.fma(v1, s11);
      FloatVector v2 = FloatVector.fromMemorySegment(F, x, x2 + 4L * k, LE);
      s02 = a0.fma(v2, s02);
      s12 = a1.fma(v2, s12);
      FloatVector v3 = FloatVector.fromMemorySegment(F, x, x3 + 4L * k, LE);
      s03 = a0.fma(v3, s03);
      s13 = a1.fma(v3, s13);
      FloatVector v4 = FloatVector.fromMemorySegment(F, x, x4 + 4L * k, LE);
      s04 = a0.fma(v4, s04);
      s14 = a1.fma(v4, s14);
      FloatVector v5 = FloatVector.fromMemorySegment(F, x, x5 + 4L * k, LE);
      s05 = a0.fma(v5, s05);
      s15 = a1.fma(v5, s15);
    }
    out.set(ScalarKernels.F32, o, Lanes.sum(s00));
    out.set(ScalarKernels.F32, o + 4, Lanes.sum(s10));
    out.set(ScalarKernels.F32, o + os, Lanes.sum(s01));
    out.set(ScalarKernels.F32, o + os + 4, Lanes.sum(s11));
    out.set(ScalarKernels.F32, o + 2 * os, Lanes.sum(s02));
    out.set(ScalarKernels.F32, o + 2 * os + 4, Lanes.sum(s12));
    out.set(ScalarKernels.F32, o + 3 * os, Lanes.sum(s03));
    out.set(ScalarKernels.F32, o + 3 * os + 4, Lanes.sum(s13));
    out.set(ScalarKernels.F32, o + 4 * os, Lanes.sum(s04));
    out.set(ScalarKernels.F32, o + 4 * os + 4, Lanes.sum(s14));
    out.set(ScalarKernels.F32, o + 5 * os, Lanes.sum(s05));
    out.set(ScalarKernels.F32, o + 5 * os + 4, Lanes.sum(s15));
  }

  private static void dot2x7(
      MemorySegment w,
      long w0,
      long wStride,
      MemorySegment x,
      long[] at,
      int bound,
      MemorySegment out,
      long o,
      long os) {
    long w1 = w0 + wStride;
    long x0 = at[0];
    long x1 = at[1];
    long x2 = at[2];
    long x3 = at[3];
    long x4 = at[4];
    long x5 = at[5];
    long x6 = at[6];
    FloatVector s00 = FloatVector.zero(F);
    FloatVector s01 = FloatVector.zero(F);
    FloatVector s02 = FloatVector.zero(F);
    FloatVector s03 = FloatVector.zero(F);
    FloatVector s04 = FloatVector.zero(F);
    FloatVector s05 = FloatVector.zero(F);
    FloatVector s06 = FloatVector.zero(F);
    FloatVector s10 = FloatVector.zero(F);
    FloatVector s11 = FloatVector.zero(F);
    FloatVector s12 = FloatVector.zero(F);
    FloatVector s13 = FloatVector.zero(F);
    FloatVector s14 = FloatVector.zero(F);
    FloatVector s15 = FloatVector.zero(F);
    FloatVector s16 = FloatVector.zero(F);
    for (int k = 0; k < bound; k += VL) {
      FloatVector a0 = load(w, w0 + (long) BYTES * k);
      FloatVector a1 = load(w, w1 + (long) BYTES * k);
      FloatVector v0 = FloatVector.fromMemorySegment(F, x, x0 + 4L * k, LE);
      s00 = a0.fma(v0, s00);
      s10 = a1.fma(v0, s10);
      FloatVector v1 = FloatVector.fromMemorySegment(F, x, x1 + 4L * k, LE);
      s01 = a0.fma(v1, s01);
      s11 = a1.fma(v1, s11);
      FloatVector v2 = FloatVector.fromMemorySegment(F, x, x2 + 4L * k, LE);
      s02 = a0.fma(v2, s02);
      s12 = a1.fma(v2, s12);
      FloatVector v3 = FloatVector.fromMemorySegment(F, x, x3 + 4L * k, LE);
      s03 = a0.fma(v3, s03);
      s13 = a1.fma(v3, s13);
      FloatVector v4 = FloatVector.fromMemorySegment(F, x, x4 + 4L * k, LE);
      s04 = a0.fma(v4, s04);
      s14 = a1.fma(v4, s14);
      FloatVector v5 = FloatVector.fromMemorySegment(F, x, x5 + 4L * k, LE);
      s05 = a0.fma(v5, s05);
      s15 = a1.fma(v5, s15);
      FloatVector v6 = FloatVector.fromMemorySegment(F, x, x6 + 4L * k, LE);
      s06 = a0.fma(v6, s06);
      s16 = a1.fma(v6, s16);
    }
    out.set(ScalarKernels.F32, o, Lanes.sum(s00));
    out.set(ScalarKernels.F32, o + 4, Lanes.sum(s10));
    out.set(ScalarKernels.F32, o + os, Lanes.sum(s01));
    out.set(ScalarKernels.F32, o + os + 4, Lanes.sum(s11));
    out.set(ScalarKernels.F32, o + 2 * os, Lanes.sum(s02));
    out.set(ScalarKernels.F32, o + 2 * os + 4, Lanes.sum(s12));
    out.set(ScalarKernels.F32, o + 3 * os, Lanes.sum(s03));
    out.set(ScalarKernels.F32, o + 3 * os + 4, Lanes.sum(s13));
    out.set(ScalarKernels.F32, o + 4 * os, Lanes.sum(s04));
    out.set(ScalarKernels.F32, o + 4 * os + 4, Lanes.sum(s14));
    out.set(ScalarKernels.F32, o + 5 * os, Lanes.sum(s05));
    out.set(ScalarKernels.F32, o + 5 * os + 4, Lanes.sum(s15));
    out.set(ScalarKernels.F32, o + 6 * os, Lanes.sum(s06));
    out.set(ScalarKernels.F32, o + 6 * os + 4, Lanes.sum(s16));
  }

  private static void dot2x8(
      MemorySegment w,
      long w0,
      long wStride,
      MemorySegment x,
      long[] at,
      int bound,
      MemorySegment out,
      long o,
      long os) {
    long w1 = w0 + wStride;
    long x0 = at[0];
    long x1 = at[1];
    long x2 = at[2];
    long x3 = at[3];
    long x4 = at[4];
    long x5 = at[5];
    long x6 = at[6];
    long x7 = at[7];
    FloatVector s00 = FloatVector.zero(F);
    FloatVector s01 = FloatVector.zero(F);
    FloatVector s02 = FloatVector.zero(F);
    FloatVector s03 = FloatVector.zero(F);
    FloatVector s04 = FloatVector.zero(F);
    FloatVector s05 = FloatVector.zero(F);
    FloatVector s06 = FloatVector.zero(F);
    FloatVector s07 = FloatVector.zero(F);
    FloatVector s10 = FloatVector.zero(F);
    FloatVector s11 = FloatVector.zero(F);
    FloatVector s12 = FloatVector.zero(F);
    FloatVector s13 = FloatVector.zero(F);
    FloatVector s14 = FloatVector.zero(F);
    FloatVector s15 = FloatVector.zero(F);
    FloatVector s16 = FloatVector.zero(F);
    FloatVector s17 = FloatVector.zero(F);
    for (int k = 0; k < bound; k += VL) {
      FloatVector a0 = load(w, w0 + (long) BYTES * k);
      FloatVector a1 = load(w, w1 + (long) BYTES * k);
      FloatVector v0 = FloatVector.fromMemorySegment(F, x, x0 + 4L * k, LE);
      s00 = a0.fma(v0, s00);
      s10 = a1.fma(v0, s10);
      FloatVector v1 = FloatVector.fromMemorySegment(F, x, x1 + 4L * k, LE);
      s01 = a0.fma(v1, s01);
      s11 = a1.fma(v1, s11);
      FloatVector v2 = FloatVector.fromMemorySegment(F, x, x2 + 4L * k, LE);
      s02 = a0.fma(v2, s02);
      s12 = a1.fma(v2, s12);
      FloatVector v3 = FloatVector.fromMemorySegment(F, x, x3 + 4L * k, LE);
      s03 = a0.fma(v3, s03);
      s13 = a1.fma(v3, s13);
      FloatVector v4 = FloatVector.fromMemorySegment(F, x, x4 + 4L * k, LE);
      s04 = a0.fma(v4, s04);
      s14 = a1.fma(v4, s14);
      FloatVector v5 = FloatVector.fromMemorySegment(F, x, x5 + 4L * k, LE);
      s05 = a0.fma(v5, s05);
      s15 = a1.fma(v5, s15);
      FloatVector v6 = FloatVector.fromMemorySegment(F, x, x6 + 4L * k, LE);
      s06 = a0.fma(v6, s06);
      s16 = a1.fma(v6, s16);
      FloatVector v7 = FloatVector.fromMemorySegment(F, x, x7 + 4L * k, LE);
      s07 = a0.fma(v7, s07);
      s17 = a1.fma(v7, s17);
    }
    out.set(ScalarKernels.F32, o, Lanes.sum(s00));
    out.set(ScalarKernels.F32, o + 4, Lanes.sum(s10));
    out.set(ScalarKernels.F32, o + os, Lanes.sum(s01));
    out.set(ScalarKernels.F32, o + os + 4, Lanes.sum(s11));
    out.set(ScalarKernels.F32, o + 2 * os, Lanes.sum(s02));
    out.set(ScalarKernels.F32, o + 2 * os + 4, Lanes.sum(s12));
    out.set(ScalarKernels.F32, o + 3 * os, Lanes.sum(s03));
    out.set(ScalarKernels.F32, o + 3 * os + 4, Lanes.sum(s13));
    out.set(ScalarKernels.F32, o + 4 * os, Lanes.sum(s04));
    out.set(ScalarKernels.F32, o + 4 * os + 4, Lanes.sum(s14));
    out.set(ScalarKernels.F32, o + 5 * os, Lanes.sum(s05));
    out.set(ScalarKernels.F32, o + 5 * os + 4, Lanes.sum(s15));
    out.set(ScalarKernels.F32, o + 6 * os, Lanes.sum(s06));
    out.set(ScalarKernels.F32, o + 6 * os + 4, Lanes.sum(s16));
    out.set(ScalarKernels.F32, o + 7 * os, Lanes.sum(s07));
    out.set(ScalarKernels.F32, o + 7 * os + 4, Lanes.sum(s17));
  }

  private static void dot1x1(
      MemorySegment w, long w0, MemorySegment x, long x0, int bound, MemorySegment out, long o) {
    FloatVector s00 = FloatVector.zero(F);
    for (int k = 0; k < bound; k += VL) {
      FloatVector a0 = load(w, w0 + (long) BYTES * k);
      FloatVector v0 = FloatVector.fromMemorySegment(F, x, x0 + 4L * k, LE);
      s00 = a0.fma(v0, s00);
    }
    out.set(ScalarKernels.F32, o, Lanes.sum(s00));
  }

  @Override
  public void widen(
      MemorySegment src, long srcOffset, MemorySegment dst, long dstOffset, int n, float scale) {
    int bound = F.loopBound(n);
    for (int i = 0; i < bound; i += VL) {
      load(src, srcOffset + (long) BYTES * i)
          .mul(scale)
          .intoMemorySegment(dst, dstOffset + 4L * i, LE);
    }
    for (int i = bound; i < n; i++) {
      dst.set(ScalarKernels.F32, dstOffset + 4L * i, readOne(src, srcOffset, i) * scale);
    }
  }

  @Override
  public void widen(MemorySegment src, long srcOffset, float[] dst, int at, int n) {
    int bound = F.loopBound(n);
    for (int i = 0; i < bound; i += VL) {
      load(src, srcOffset + (long) BYTES * i).intoArray(dst, at + i);
    }
    for (int i = bound; i < n; i++) {
      dst[at + i] = readOne(src, srcOffset, i);
    }
  }

  @Override
  public void axpy(
      float factor, MemorySegment src, long srcOffset, MemorySegment dst, long dstOffset, int n) {
    int bound = F.loopBound(n);
    FloatVector f = FloatVector.broadcast(F, factor);
    for (int i = 0; i < bound; i += VL) {
      FloatVector d = FloatVector.fromMemorySegment(F, dst, dstOffset + 4L * i, LE);
      load(src, srcOffset + (long) BYTES * i)
          .fma(f, d)
          .intoMemorySegment(dst, dstOffset + 4L * i, LE);
    }
    for (int i = bound; i < n; i++) {
      long at = dstOffset + 4L * i;
      dst.set(
          ScalarKernels.F32,
          at,
          Math.fma(factor, readOne(src, srcOffset, i), dst.get(ScalarKernels.F32, at)));
    }
  }
}
