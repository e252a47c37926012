package io.moe4j.checkpoint;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.AdapterPolicy.FusedOrder;
import io.moe4j.checkpoint.AdapterPolicy.FusedSide;
import io.moe4j.checkpoint.CheckpointLayout.FusedParameter;
import io.moe4j.checkpoint.ExpertForm.Orientation;
import java.util.EnumSet;
import java.util.Optional;
import java.util.Set;

/**
 * A pair of 2-D factors with all experts folded in, as PEFT writes it for a stored parameter {@code
 * [E, dim1, dim2]}: A {@code [E*r, a]} with rows grouped by expert (row {@code e*r + j}), B {@code
 * [b, r*E]} with rank-major columns (column {@code j*E + e}); other writers have other orders.
 * {@code a} is one of the dimensions and {@code b} the other.
 *
 * @param a the file's lora_A
 * @param b the file's lora_B
 * @param rank of one expert
 * @param aShared whether one A serves all experts
 * @param bShared whether one B serves all experts
 */
record FusedPair(Tensor a, Tensor b, int rank, boolean aShared, boolean bShared) {
  /** Factors as the block uses them: A {@code [E or 1, r, in]}, B {@code [E or 1, out, r]}. */
  record Views(Tensor a, Tensor b) {}

  /**
   * Reads rank and sharing off the shapes.
   *
   * @param experts {@code E}
   * @param configRank the rank that adapter_config.json gives, which decides where shapes leave two
   *     readings
   * @return the pair, or empty if the shapes fit no reading; sides are below 2^31
   */
  static Optional<FusedPair> of(Tensor a, Tensor b, int experts, int configRank) {
    if (a.dims() != 2 || b.dims() != 2) {
      return Optional.empty();
    }
    long rows = a.size(0);
    long columns = b.size(1);
    if (rows == columns) {
      boolean perExpert = rows % experts == 0 && rows > 0;
      if (perExpert && (rows / experts == configRank || rows != configRank)) {
        return Optional.of(new FusedPair(a, b, toRank(rows / experts), false, false));
      }
      return rows == configRank
          ? Optional.of(new FusedPair(a, b, toRank(rows), true, true))
          : Optional.empty();
    }
    if (rows > 0 && columns % experts == 0 && rows == columns / experts) {
      return Optional.of(new FusedPair(a, b, toRank(rows), true, false));
    }
    if (columns > 0 && rows % experts == 0 && columns == rows / experts) {
      return Optional.of(new FusedPair(a, b, toRank(columns), false, true));
    }
    return Optional.empty();
  }

  private static int toRank(long rank) {
    return Math.toIntExact(rank);
  }

  /** The sides that A can cover by the shapes: none, one, or both of a square parameter. */
  Set<FusedSide> sides(FusedParameter parameter, MoeConfig config) {
    long[] dims = ModulePlaces.storedDims(parameter, config);
    Set<FusedSide> sides = EnumSet.noneOf(FusedSide.class);
    if (a.size(1) == dims[0] && b.size(0) == dims[1]) {
      sides.add(FusedSide.DIM1);
    }
    if (a.size(1) == dims[1] && b.size(0) == dims[0]) {
      sides.add(FusedSide.DIM2);
    }
    return sides;
  }

  /** Whether the order in which B folds its experts makes a difference. */
  boolean dependsOnOrder(int experts) {
    return experts > 1 && rank > 1 && !bShared;
  }

  /** The factors once the side of A and the orders of both are known. */
  Views views(
      FusedParameter parameter, FusedSide side, int experts, FusedOrder aOrder, FusedOrder bOrder) {
    Tensor a3 = viewA(experts, aOrder);
    Tensor b3 = viewB(experts, bOrder);
    boolean inIsDim1 = parameter.orientation() == Orientation.IN_OUT;
    boolean aReadsInput = (side == FusedSide.DIM1) == inIsDim1;
    // W' = (B A)^T = A^T B^T: the factors change places.
    return aReadsInput ? new Views(a3, b3) : new Views(b3.transpose(1, 2), a3.transpose(1, 2));
  }

  private Tensor viewA(int experts, FusedOrder order) {
    if (aShared || order == FusedOrder.GROUPED_BY_EXPERT) {
      return a.reshape(aShared ? 1 : experts, rank, a.size(1));
    }
    long width = a.size(1);
    return Tensor.strided(
        a.dtype(),
        a.memory(),
        a.byteOffset(),
        new long[] {experts, rank, width},
        new long[] {width, width * experts, 1});
  }

  private Tensor viewB(int experts, FusedOrder order) {
    if (bShared) {
      return b.reshape(1, b.size(0), rank);
    }
    boolean grouped = order == FusedOrder.GROUPED_BY_EXPERT;
    return Tensor.strided(
        b.dtype(),
        b.memory(),
        b.byteOffset(),
        new long[] {experts, b.size(0), rank},
        new long[] {grouped ? rank : 1, (long) rank * experts, grouped ? 1 : experts});
  }
}
