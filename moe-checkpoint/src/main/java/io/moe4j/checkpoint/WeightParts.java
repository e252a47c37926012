package io.moe4j.checkpoint;

import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.Weight;
import io.moe4j.checkpoint.CheckpointDescription.WeightPart;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** Collects what the linear maps of a block are stored as, those that are alike together. */
final class WeightParts {
  private record Key(String part, QuantScheme scheme, DType dtype) {}

  private record Sum(String example, int maps, long bytes) {}

  private final Map<Key, Sum> parts = new LinkedHashMap<>();

  void add(String part, Weight w) {
    add(part, w.name(), w.scheme(), w.values().dtype(), w.byteSize());
  }

  void add(String part, ExpertWeights.Expert mlp) {
    mlp.projections().forEach(w -> add(part, w));
  }

  void add(String part, String name, Tensor plain) {
    add(part, name, QuantScheme.NONE, plain.dtype(), plain.dtype().byteSize(plain.elementCount()));
  }

  private void add(String part, String name, QuantScheme scheme, DType dtype, long bytes) {
    parts.merge(
        new Key(part, scheme, dtype),
        new Sum(name, 1, bytes),
        (a, b) -> new Sum(a.example(), a.maps() + 1, a.bytes() + b.bytes()));
  }

  List<WeightPart> list() {
    List<WeightPart> list = new ArrayList<>();
    parts.forEach((key, sum) ->
        list.add(
            new WeightPart(
                key.part(), key.scheme(), key.dtype(), sum.maps(), sum.bytes(), sum.example())));
    return List.copyOf(list);
  }
}
