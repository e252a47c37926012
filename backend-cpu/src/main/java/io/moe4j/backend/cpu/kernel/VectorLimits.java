package io.moe4j.backend.cpu.kernel;

import java.lang.foreign.MemorySegment;
import java.nio.ByteOrder;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.LongVector;
import jdk.incubator.vector.VectorOperators;
import jdk.incubator.vector.VectorSpecies;

/** With the Vector API: four loads, or twelve chains of multiply-adds, in flight. */
final class VectorLimits implements Limits {
  private static final VectorSpecies<Float> F = VectorWidth.F;
  private static final VectorSpecies<Long> L = LongVector.SPECIES_PREFERRED;
  private static final ByteOrder LE = ByteOrder.LITTLE_ENDIAN;
  private static final int CHAINS = 12;

  @Override
  public double read(MemorySegment s, long offset, long length) {
    int n = L.vectorByteSize();
    LongVector a = LongVector.zero(L);
    LongVector b = a;
    LongVector c = a;
    LongVector d = a;
    long end = offset + length - 4L * n;
    for (long i = offset; i <= end; i += 4L * n) {
      a = a.lanewise(VectorOperators.XOR, LongVector.fromMemorySegment(L, s, i, LE));
      b = b.lanewise(VectorOperators.XOR, LongVector.fromMemorySegment(L, s, i + n, LE));
      c = c.lanewise(VectorOperators.XOR, LongVector.fromMemorySegment(L, s, i + 2L * n, LE));
      d = d.lanewise(VectorOperators.XOR, LongVector.fromMemorySegment(L, s, i + 3L * n, LE));
    }
    return a.lanewise(VectorOperators.XOR, b)
        .lanewise(VectorOperators.XOR, c.lanewise(VectorOperators.XOR, d))
        .reduceLanes(VectorOperators.XOR);
  }

  @Override
  public double fma(int rounds) {
    FloatVector x = FloatVector.broadcast(F, 0.999f);
    FloatVector y = FloatVector.broadcast(F, 1e-7f);
    FloatVector a = x;
    FloatVector b = x;
    FloatVector c = x;
    FloatVector d = x;
    FloatVector e = x;
    FloatVector f = x;
    FloatVector g = x;
    FloatVector h = x;
    FloatVector i = x;
    FloatVector j = x;
    FloatVector k = x;
    FloatVector l = x;
    for (int n = 0; n < rounds; n++) {
      a = a.fma(x, y);
      b = b.fma(x, y);
      c = c.fma(x, y);
      d = d.fma(x, y);
      e = e.fma(x, y);
      f = f.fma(x, y);
      g = g.fma(x, y);
      h = h.fma(x, y);
      i = i.fma(x, y);
      j = j.fma(x, y);
      k = k.fma(x, y);
      l = l.fma(x, y);
    }
    FloatVector left = a.add(b).add(c).add(d.add(e).add(f));
    return left.add(g.add(h).add(i)).add(j.add(k).add(l)).reduceLanes(VectorOperators.ADD);
  }

  @Override
  public double flopsPerRound() {
    return 2.0 * CHAINS * F.length();
  }
}
