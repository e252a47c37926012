package io.moe4j.lora;

import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.tensor.Tensor;
import java.util.List;
import org.jspecify.annotations.Nullable;

/** Slots and a mapping without a registry. */
record TestContext(List<@Nullable LoraLayer> slots, Tensor tokenLoraMapping)
    implements MoeLoraContext {
  @Override
  public int maxLoras() {
    return slots.size();
  }

  @Override
  public boolean hasLora() {
    return true;
  }

  @Override
  public @Nullable LoraLayer slot(int slot) {
    return slots.get(slot);
  }

  @Override
  public PunicaWrapper punicaWrapper() {
    return CpuPunicaWrapper.shared();
  }

  @Override
  public MoeLoraContext withTokenLoraMapping(Tensor mapping) {
    return new TestContext(slots, mapping);
  }
}
