package io.moe4j.tck;

import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.tensor.Tensor;
import java.util.EnumMap;
import java.util.List;
import java.util.Optional;
import java.util.function.UnaryOperator;
import org.jspecify.annotations.Nullable;

/**
 * A context over fixed slots.
 *
 * @param slots one entry a slot, empty where nothing is loaded
 * @param tokenLoraMapping slot of each token
 * @param hasLora whether any token has an adapter
 * @param punicaWrapper adds deltas
 */
record KitLoraContext(
    List<Optional<LoraLayer>> slots,
    Tensor tokenLoraMapping,
    boolean hasLora,
    PunicaWrapper punicaWrapper)
    implements MoeLoraContext {

  @Override
  public int maxLoras() {
    return slots.size();
  }

  @Override
  public @Nullable LoraLayer slot(int slot) {
    return slots.get(slot).orElse(null);
  }

  @Override
  public MoeLoraContext withTokenLoraMapping(Tensor mapping) {
    return new KitLoraContext(slots, mapping, hasLora, punicaWrapper);
  }

  /** {@return the same factors in other memory} */
  static LoraLayer map(LoraLayer layer, UnaryOperator<Tensor> move) {
    var moved = new EnumMap<LoraTarget, LoraFactors>(LoraTarget.class);
    layer
        .factors()
        .forEach((target, f) ->
            moved.put(target, new LoraFactors(move.apply(f.a()), move.apply(f.b()))));
    return new LoraLayer(moved);
  }
}
