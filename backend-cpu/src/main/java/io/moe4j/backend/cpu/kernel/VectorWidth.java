package io.moe4j.backend.cpu.kernel;

import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.VectorShape;
import jdk.incubator.vector.VectorSpecies;

/**
 * The width of all kernels' vectors: what the processor prefers, but from 128 to 512 bits, as many
 * lanes as folds and transposes have steps for.
 */
final class VectorWidth {
  private static final VectorShape SHAPE =
      VectorShape.forBitSize(Math.clamp(FloatVector.SPECIES_PREFERRED.vectorBitSize(), 128, 512));

  static final VectorSpecies<Float> F = VectorSpecies.of(float.class, SHAPE);
  static final VectorSpecies<Integer> I = VectorSpecies.of(int.class, SHAPE);

  private VectorWidth() {}
}
