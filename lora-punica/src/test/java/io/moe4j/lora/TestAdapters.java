package io.moe4j.lora;

import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.tensor.Tensor;
import java.util.Map;
import java.util.Objects;

/** Adapters of a small model with MoE layers 1 and 3, told apart by one number. */
final class TestAdapters {
  static final int HIDDEN = 6;
  static final int INTER = 4;
  static final int EXPERTS = 3;
  static final Map<Integer, MoeConfig> LAYERS = layers(8);

  private TestAdapters() {}

  static Map<Integer, MoeConfig> layers(int maxLoras) {
    MoeConfig config =
        MoeConfig.builder(HIDDEN, INTER, EXPERTS, 1).lora(new LoraConfig(maxLoras, 8)).build();
    return Map.of(1, config, 3, config);
  }

  /** Layer 1: UP, every element of A is {@code mark}. Layer 3 is left alone. */
  static LoraAdapter adapter(String name, float mark) {
    return new LoraAdapter(name, Map.of(1, new LoraLayer(Map.of(LoraTarget.UP, factors(2, mark)))));
  }

  static LoraFactors factors(int rank, float mark) {
    float[] a = new float[EXPERTS * rank * HIDDEN];
    java.util.Arrays.fill(a, mark);
    return new LoraFactors(
        Tensor.ofFloats(a, EXPERTS, rank, HIDDEN),
        Tensor.ofFloats(new float[EXPERTS * INTER * rank], EXPERTS, INTER, rank));
  }

  /** The number that tells adapters apart, as a context shows it. */
  static double mark(MoeLoraContext context, int slot) {
    return a(context, slot).get(0, 0, 0);
  }

  /** The same on a device. */
  static double mark(FakeDevice device, MoeLoraContext context, int slot) {
    return device.read(a(context, slot)).get(0, 0, 0);
  }

  private static Tensor a(MoeLoraContext context, int slot) {
    LoraLayer layer = Objects.requireNonNull(context.slot(slot));
    return Objects.requireNonNull(layer.get(LoraTarget.UP)).a();
  }
}
