package io.moe4j.cli.bench;

import java.lang.foreign.MemorySegment;
import java.nio.ByteOrder;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.LongVector;
import jdk.incubator.vector.VectorOperators;
import jdk.incubator.vector.VectorSpecies;

/** The widest vectors of the processor. Loaded only where {@code jdk.incubator.vector} is. */
final class VectorProbe implements HostProbe {
  private static final VectorSpecies<Float> F = FloatVector.SPECIES_PREFERRED;
  private static final VectorSpecies<Long> L = LongVector.SPECIES_PREFERRED;

  /** Chains: at least the latency of a multiply-add times the units that do them. */
  private static final int CHAINS = 12;

  @Override
  public String name() {
    return F.vectorBitSize() + "-bit vectors";
  }

  @Override
  public int flopsPerIteration() {
    return 2 * CHAINS * F.length();
  }

  @Override
  public long read(MemorySegment memory) {
    long step = L.vectorByteSize();
    LongVector a = LongVector.zero(L);
    LongVector b = a;
    LongVector c = a;
    LongVector d = a;
    ByteOrder order = ByteOrder.nativeOrder();
    long end = memory.byteSize() - 4 * step;
    long i = 0;
    for (; i <= end; i += 4 * step) {
      a = a.add(LongVector.fromMemorySegment(L, memory, i, order));
      b = b.add(LongVector.fromMemorySegment(L, memory, i + step, order));
      c = c.add(LongVector.fromMemorySegment(L, memory, i + 2 * step, order));
      d = d.add(LongVector.fromMemorySegment(L, memory, i + 3 * step, order));
    }
    return a.add(b).add(c.add(d)).reduceLanes(VectorOperators.ADD);
  }

  @Override
  public float multiplyAdd(long iterations) {
    FloatVector m = FloatVector.broadcast(F, 0.999f);
    FloatVector k = FloatVector.broadcast(F, 0.001f);
    FloatVector a = FloatVector.broadcast(F, 1f);
    FloatVector b = a;
    FloatVector c = a;
    FloatVector d = a;
    FloatVector e = a;
    FloatVector f = a;
    FloatVector g = a;
    FloatVector h = a;
    FloatVector p = a;
    FloatVector q = a;
    FloatVector r = a;
    FloatVector s = a;
    for (long i = 0; i < iterations; i++) {
      a = a.fma(m, k);
      b = b.fma(m, k);
      c = c.fma(m, k);
      d = d.fma(m, k);
      e = e.fma(m, k);
      f = f.fma(m, k);
      g = g.fma(m, k);
      h = h.fma(m, k);
      p = p.fma(m, k);
      q = q.fma(m, k);
      r = r.fma(m, k);
      s = s.fma(m, k);
    }
    FloatVector sum =
        a.add(b).add(c.add(d)).add(e.add(f).add(g.add(h))).add(p.add(q).add(r.add(s)));
    return sum.reduceLanes(VectorOperators.ADD);
  }
}
