package io.moe4j.cli.bench;

import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.lora.SlotsKey;
import io.moe4j.api.tensor.Tensor;
import java.util.List;
import java.util.function.Supplier;
import org.jspecify.annotations.Nullable;

/**
 * Adapters in all slots, for one batch.
 *
 * @param slotsKey the same for all batches over these slots
 * @param slots one a slot
 * @param tokenLoraMapping slot of each token
 * @param punica asked only by backends that do not fuse LoRA
 */
record DeviceAdapters(
    SlotsKey slotsKey,
    List<LoraLayer> slots,
    Tensor tokenLoraMapping,
    Supplier<PunicaWrapper> punica)
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
    return punica.get();
  }

  @Override
  public MoeLoraContext withTokenLoraMapping(Tensor mapping) {
    return new DeviceAdapters(slotsKey, slots, mapping, punica);
  }
}
