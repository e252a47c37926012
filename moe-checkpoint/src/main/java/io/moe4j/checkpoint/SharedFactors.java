package io.moe4j.checkpoint;

import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.CheckpointLayout.FusedParameter.Kind;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.jspecify.annotations.Nullable;

/**
 * Factors that all experts share and whose partners stand apart, one for each expert: {@code
 * experts.gate_proj.lora_A} {@code [1, r, in]} (or {@code [r, in]}) beside {@code
 * experts.3.gate_proj.lora_B} {@code [out, r]}, and the like with A and B exchanged.
 * Megatron-Bridge writes its shared-outer adapters so for models whose files keep experts apart.
 */
final class SharedFactors {
  /** Factors of one expert: {@code [1, r, in]} and {@code [1, out, r]}. */
  record One(Tensor a, Tensor b) {
    int rank() {
      return Math.toIntExact(a.size(1));
    }
  }

  /** What a factor is of: gate and up of one module count as a target of its own. */
  private record Place(int layer, @Nullable LoraTarget target, boolean isA) {}

  private SharedFactors() {}

  /**
   * Finds for pairs of single experts that lack a factor the one that all experts share. A factor
   * that two modules could lend is lent by neither.
   */
  static void lend(Collection<FactorPair> pairs) {
    Map<Place, FactorPair> lenders = new HashMap<>();
    Set<Place> doubtful = new HashSet<>();
    for (FactorPair pair : pairs) {
      for (Place place : lends(pair)) {
        if (lenders.put(place, pair) != null) {
          doubtful.add(place);
        }
      }
    }
    lenders.keySet().removeAll(doubtful);
    if (lenders.isEmpty()) {
      return;
    }
    for (FactorPair pair : pairs) {
      Place wanted = wants(pair);
      FactorPair lender = wanted == null ? null : lenders.get(wanted);
      if (lender != null) {
        pair.lender = lender;
        lender.borrowers.add(pair);
      }
    }
  }

  private static List<Place> lends(FactorPair pair) {
    if ((pair.a == null) == (pair.b == null)) {
      return List.of();
    }
    boolean isA = pair.a != null;
    Tensor factor = isA ? pair.a : pair.b;
    boolean single =
        factor != null && (factor.dims() == 2 || (factor.dims() == 3 && factor.size(0) == 1));
    List<Place> places = new ArrayList<>();
    if (single && pair.place instanceof ModulePlace.Stacked s) {
      places.add(new Place(s.layer(), s.target(), isA));
    } else if (single && isA && pair.place instanceof ModulePlace.Named n && !n.ofModule()) {
      if (n.parameter().kind() == Kind.GATE_UP) {
        // The same A serves gate, up, and both in one module.
        places.add(new Place(n.layer(), LoraTarget.GATE, true));
        places.add(new Place(n.layer(), LoraTarget.UP, true));
        places.add(new Place(n.layer(), null, true));
      }
    }
    return places;
  }

  private static @Nullable Place wants(FactorPair pair) {
    if ((pair.a == null) == (pair.b == null)) {
      return null;
    }
    boolean needsA = pair.a == null;
    return switch (pair.place) {
      case ModulePlace.Expert e -> new Place(e.layer(), e.target(), needsA);
      case ModulePlace.ExpertGateUp e -> new Place(e.layer(), null, needsA);
      default -> null;
    };
  }

  /**
   * The factors of one linear map, of which one may be borrowed. A borrowed factor is the same
   * tensor for all that borrow it.
   *
   * @param of what the map is, for messages
   */
  static One ofOne(FactorPair pair, long in, long out, String of) throws AdapterProblem {
    Tensor a = pair.a();
    Tensor b = pair.b();
    Tensor a3 = threeDims(a, pair.a == null);
    Tensor b3 = threeDims(b, pair.b == null);
    if (a3 == null
        || b3 == null
        || a3.size(1) != b3.size(2)
        || a3.size(1) < 1
        || a3.size(2) != in
        || b3.size(1) != out) {
      throw AdapterProblem.damage(
          pair.turned
              ? "lora_a is %s and lora_b %s; %s takes [%d, r] and [r, %d]"
                  .formatted(MlxFactors.asStored(a), MlxFactors.asStored(b), of, in, out)
              : "lora_A is %s and lora_B %s; %s takes [r, %d] and [%d, r]"
                  .formatted(a, b, of, in, out));
    }
    return new One(a3, b3);
  }

  private static @Nullable Tensor threeDims(Tensor t, boolean borrowed) {
    if (t.dims() == 2) {
      return t.expand(1);
    }
    return borrowed && t.dims() == 3 && t.size(0) == 1 ? t : null;
  }
}
