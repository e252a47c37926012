package io.moe4j.oracle;

import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.MemorySource;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.MoeLayerWeights;
import java.util.LinkedHashSet;
import java.util.Set;
import org.jspecify.annotations.Nullable;

/** The mapped files under a layer's weights and requests: asked before and after each forward. */
final class MappedSources {
  /** An array, because the loop over it is part of every forward. */
  private final MemorySource[] sources;

  private MappedSources(Set<MemorySource> sources) {
    this.sources = sources.toArray(MemorySource[]::new);
  }

  static MappedSources of(MoeLayerWeights weights) {
    Set<MemorySource> all = new LinkedHashSet<>();
    WeightTensors.forEach(
        weights,
        t -> {
          MemorySource source = of(t);
          if (source != null) {
            all.add(source);
          }
        });
    return new MappedSources(all);
  }

  static MappedSources none() {
    return new MappedSources(Set.of());
  }

  private static @Nullable MemorySource of(@Nullable Tensor t) {
    return t != null && t.memory() instanceof HostMemory host ? host.source() : null;
  }

  private static void requireIntact(@Nullable Tensor t) {
    MemorySource source = of(t);
    if (source != null) {
      source.requireIntact();
    }
  }

  void requireIntact() {
    for (MemorySource s : sources) {
      s.requireIntact();
    }
  }

  /** Of the weights, and of what a request reads. */
  void requireIntact(MoeForward f) {
    requireIntact();
    requireIntact(f.hidden());
    requireIntact(f.routerLogits());
    requireIntact(f.topkIds());
    requireIntact(f.topkWeights());
    if (f.lora() != null) {
      requireIntact(f.lora().tokenLoraMapping());
    }
  }
}
