package io.moe4j.backend.cpu.kernel;

import io.moe4j.api.tensor.DType;
import java.lang.foreign.MemorySegment;
import java.nio.ByteOrder;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.IntVector;
import jdk.incubator.vector.ShortVector;
import jdk.incubator.vector.VectorMask;
import jdk.incubator.vector.VectorOperators;
import jdk.incubator.vector.VectorShape;
import jdk.incubator.vector.VectorSpecies;

/** Vectors of consecutive elements of a dtype, widened exactly. */
final class VectorLoads {
  private static final VectorSpecies<Float> F = FloatVector.SPECIES_PREFERRED;
  private static final VectorSpecies<Integer> I = IntVector.SPECIES_PREFERRED;
  private static final VectorSpecies<Short> S =
      VectorSpecies.of(short.class, VectorShape.forBitSize(F.vectorBitSize() / 2));
  private static final ByteOrder LE = ByteOrder.LITTLE_ENDIAN;

  private VectorLoads() {}

  /**
   * {@return as many elements as fill a vector}
   *
   * @param type a constant where this is inlined, or each load branches
   * @param s holds them
   * @param offset where they begin, bytes
   */
  static FloatVector load(DType type, MemorySegment s, long offset) {
    if (type == DType.F32) {
      return FloatVector.fromMemorySegment(F, s, offset, LE);
    }
    ShortVector raw = ShortVector.fromMemorySegment(S, s, offset, LE);
    IntVector v = (IntVector) raw.convertShape(VectorOperators.ZERO_EXTEND_S2I, I, 0);
    if (type == DType.BF16) {
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
}
