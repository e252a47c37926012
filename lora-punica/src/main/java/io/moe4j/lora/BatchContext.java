package io.moe4j.lora;

import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.lora.SlotsKey;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.util.Objects;
import java.util.OptionalInt;
import org.jspecify.annotations.Nullable;

/** A batch as one layer sees it. Shows only the slots that the batch leases. */
final class BatchContext implements MoeLoraContext {
  private final AdapterBatch batch;
  private final int ordinal;
  private final @Nullable Tensor otherMapping;

  BatchContext(AdapterBatch batch, int ordinal, @Nullable Tensor otherMapping) {
    this.batch = batch;
    this.ordinal = ordinal;
    this.otherMapping = otherMapping;
  }

  @Override
  public OptionalInt layerIndex() {
    return OptionalInt.of(batch.registry().layerIndex(ordinal));
  }

  @Override
  public int maxLoras() {
    return batch.registry().maxLoras();
  }

  @Override
  public Tensor tokenLoraMapping() {
    return otherMapping != null ? otherMapping : batch.mappingTensor();
  }

  @Override
  public boolean hasLora() {
    return batch.hasLora();
  }

  @Override
  public @Nullable LoraLayer slot(int slot) {
    LoadedAdapter adapter = batch.bySlot(Objects.checkIndex(slot, maxLoras()));
    return adapter == null ? null : adapter.layer(ordinal);
  }

  @Override
  public boolean uses(int slot) {
    return batch.bySlot(slot) != null;
  }

  @Override
  public SlotsKey slotsKey() {
    return batch.registry().slotsKey(ordinal);
  }

  @Override
  public void awaitFactors(DeviceStream stream) {
    batch.awaitFactors(ordinal, stream);
  }

  @Override
  public PunicaWrapper punicaWrapper() {
    return batch.registry().punica();
  }

  @Override
  public MoeLoraContext withTokenLoraMapping(Tensor tokenLoraMapping) {
    if (tokenLoraMapping.dtype() != DType.I32) {
      throw new IllegalArgumentException(
          "tokenLoraMapping is " + tokenLoraMapping + ", must be I32");
    }
    return new BatchContext(batch, ordinal, tokenLoraMapping);
  }
}
