package io.moe4j.oracle;

import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.tensor.Tensor;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/** A context over given slots. */
record FakeLora(List<LoraLayer> slots, Tensor tokenLoraMapping, boolean hasLora)
    implements MoeLoraContext {

  static FakeLora of(int slots, int... mapping) {
    return new FakeLora(
        java.util.Collections.nCopies(slots, LoraLayer.NONE),
        Tensor.ofInts(mapping, mapping.length),
        true);
  }

  /** An UP delta of some rank for one expert's width. */
  static LoraLayer up(int rank, int in, int out) {
    return new LoraLayer(
        Map.of(
            LoraTarget.UP,
            new LoraFactors(
                Tensor.ofFloats(new float[rank * in], 1, rank, in),
                Tensor.ofFloats(new float[out * rank], 1, out, rank))));
  }

  @Override
  public int maxLoras() {
    return slots.size();
  }

  @Override
  public @Nullable LoraLayer slot(int slot) {
    return slots.get(slot);
  }

  @Override
  public PunicaWrapper punicaWrapper() {
    throw new AssertionError("the fake experts add their deltas themselves");
  }

  @Override
  public MoeLoraContext withTokenLoraMapping(Tensor mapping) {
    return new FakeLora(slots, mapping, hasLora);
  }
}
