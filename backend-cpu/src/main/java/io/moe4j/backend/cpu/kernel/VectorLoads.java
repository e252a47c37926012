package io.moe4j.backend.cpu.kernel;

import java.lang.foreign.MemorySegment;
import java.nio.ByteOrder;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.IntVector;
import jdk.incubator.vector.ShortVector;
import jdk.incubator.vector.VectorMask;
import jdk.incubator.vector.VectorOperators;
import jdk.incubator.vector.VectorShape;
import jdk.incubator.vector.VectorSpecies;

/**
 * Vectors of consecutive elements of a dtype, widened exactly. A method for each: the compiler does
 * not inline one that it has compiled to much code on its own, as one for all dtypes is.
 */
final class VectorLoads {
  private static final VectorSpecies<Float> F = VectorWidth.F;
  private static final VectorSpecies<Integer> I = VectorWidth.I;
  private static final VectorSpecies<Short> S =
      VectorSpecies.of(short.class, VectorShape.forBitSize(F.vectorBitSize() / 2));
  private static final ByteOrder LE = ByteOrder.LITTLE_ENDIAN;

  private VectorLoads() {}

  static FloatVector f32(MemorySegment s, long offset) {
    FaultMark.set();
    return FloatVector.fromMemorySegment(F, s, offset, LE);
  }

  static FloatVector bf16(MemorySegment s, long offset) {
    return raw(s, offset).lanewise(VectorOperators.LSHL, 16).reinterpretAsFloats();
  }

  static FloatVector f16(MemorySegment s, long offset) {
    return widenF16(raw(s, offset));
  }

  private static IntVector raw(MemorySegment s, long offset) {
    FaultMark.set();
    ShortVector raw = ShortVector.fromMemorySegment(S, s, offset, LE);
    return (IntVector) raw.convertShape(VectorOperators.ZERO_EXTEND_S2I, I, 0);
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
}
