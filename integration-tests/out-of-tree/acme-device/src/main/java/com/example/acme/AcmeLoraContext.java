package com.example.acme;

import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.tensor.Tensor;
import java.util.EnumMap;
import java.util.Map;

/** A batch's adapters as the card sees them. */
record AcmeLoraContext(MoeLoraContext given) implements MoeLoraContext {
  static MoeLoraContext onCard(MoeLoraContext lora) {
    return lora == null ? null : new AcmeLoraContext(lora);
  }

  @Override
  public int maxLoras() {
    return given.maxLoras();
  }

  @Override
  public Tensor tokenLoraMapping() {
    return AcmeDevice.onCard(given.tokenLoraMapping());
  }

  @Override
  public boolean hasLora() {
    return given.hasLora();
  }

  @Override
  public LoraLayer slot(int slot) {
    LoraLayer layer = given.slot(slot);
    if (layer == null) {
      return null;
    }
    Map<LoraTarget, LoraFactors> factors = new EnumMap<>(LoraTarget.class);
    layer
        .factors()
        .forEach((target, f) ->
            factors.put(
                target, new LoraFactors(AcmeDevice.onCard(f.a()), AcmeDevice.onCard(f.b()))));
    return new LoraLayer(factors);
  }

  @Override
  public PunicaWrapper punicaWrapper() {
    throw new IllegalStateException("the card adds deltas by itself");
  }

  @Override
  public MoeLoraContext withTokenLoraMapping(Tensor tokenLoraMapping) {
    return new AcmeLoraContext(given.withTokenLoraMapping(tokenLoraMapping));
  }
}
