package io.moe4j.checkpoint;

import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.Arena;
import java.util.EnumMap;
import java.util.IdentityHashMap;
import java.util.Map;
import java.util.TreeMap;

/** Cuts an adapter down to the experts of one rank. */
final class LocalExperts {
  private LocalExperts() {}

  static LoraAdapter slice(LoraAdapter adapter, ExpertMap expertMap) {
    int[] globalOf = new int[expertMap.numLocalExperts()];
    for (int e = 0; e < expertMap.numGlobalExperts(); e++) {
      if (expertMap.local(e) >= 0) {
        globalOf[expertMap.local(e)] = e;
      }
    }
    Map<Integer, LoraLayer> layers = new TreeMap<>();
    adapter
        .layers()
        .forEach((index, layer) -> {
          IdentityHashMap<Tensor, Tensor> done = new IdentityHashMap<>();
          Map<LoraTarget, LoraFactors> factors = new EnumMap<>(LoraTarget.class);
          layer
              .factors()
              .forEach((target, f) -> {
                if (!target.isRouted()) {
                  factors.put(target, f);
                } else if (globalOf.length > 0) {
                  requireSize(f, expertMap, index, target);
                  // Gate and up may share A; they still do afterwards.
                  Tensor a = done.computeIfAbsent(f.a(), t -> take(t, globalOf));
                  factors.put(target, new LoraFactors(a, take(f.b(), globalOf)));
                }
              });
          layers.put(index, new LoraLayer(factors));
        });
    return new LoraAdapter(adapter.name(), layers);
  }

  private static void requireSize(LoraFactors f, ExpertMap map, int layer, LoraTarget target) {
    if (f.numExperts() != 1 && f.numExperts() != map.numGlobalExperts()) {
      throw new IllegalArgumentException(
          "layer "
              + layer
              + " "
              + target
              + " has factors of "
              + f.numExperts()
              + " experts, expertMap covers "
              + map.numGlobalExperts());
    }
  }

  private static Tensor take(Tensor factor, int[] globalOf) {
    if (factor.size(0) == 1) {
      return factor;
    }
    boolean neighbours = true;
    for (int i = 1; i < globalOf.length; i++) {
      neighbours &= globalOf[i] == globalOf[0] + i;
    }
    if (neighbours) {
      return factor.narrow(0, globalOf[0], globalOf.length);
    }
    long n = globalOf.length;
    Tensor copy =
        factor.stride(1) == 1 && factor.stride(2) != 1
            ? FactorPacker.allocateB(
                Arena.ofAuto(), factor.dtype(), n, factor.size(1), factor.size(2))
            : FactorPacker.allocate(
                Arena.ofAuto(), factor.dtype(), n, factor.size(1), factor.size(2));
    for (int i = 0; i < globalOf.length; i++) {
      FactorPacker.copy(factor.narrow(0, globalOf[i], 1), copy.narrow(0, i, 1), 1);
    }
    return copy;
  }
}
