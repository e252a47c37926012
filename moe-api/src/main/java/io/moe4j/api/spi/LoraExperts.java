package io.moe4j.api.spi;

import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.Tensor;

/**
 * Modular experts that apply LoRA. The default methods let the context's punica wrapper add the
 * deltas: call {@link #applyW13Lora} between the w13 product and the activation, {@link
 * #applyW2Lora} between the w2 product and the weighted sum. A backend may instead read the factors
 * from the context and fuse; the result must be the same.
 */
public interface LoraExperts extends ModularExperts {
  /**
   * Brings what the experts keep on the device about the slots up to date without computing
   * anything: to be called before the replay of a graph that was captured with a context of the
   * same {@link MoeLoraContext#slotsKey}, when slots may have changed since. May copy; cannot be
   * captured. By default the context's punica wrapper {@linkplain
   * io.moe4j.api.lora.PunicaWrapper#prepare does so}; experts that read factors themselves do it
   * themselves.
   *
   * @param context the slots that the replay reads
   * @param stream of the replay
   */
  default void refresh(MoeLoraContext context, DeviceStream stream) {
    context.punicaWrapper().prepare(context, stream);
  }

  /**
   * Adds gate and up deltas.
   *
   * @param context the batch's adapters
   * @param y {@code [T, K, 2I]}, the w13 product
   * @param x {@code [T, H]}, what it read
   * @param routing ids
   * @param gated whether {@code y} has gate columns
   * @param layout where gate and up columns stand in {@code y}
   * @param stream where to run
   */
  default void applyW13Lora(
      MoeLoraContext context,
      Tensor y,
      Tensor x,
      ExpertRouting routing,
      boolean gated,
      GateUpLayout layout,
      DeviceStream stream) {
    context.punicaWrapper().addLoraW13(context, y, x, routing, gated, layout, true, stream);
  }

  /**
   * Adds down deltas.
   *
   * @param context the batch's adapters
   * @param y {@code [T, K, H]}, the w2 product
   * @param x {@code [T * K, I]}, what it read
   * @param routing ids and weights
   * @param mulRoutedWeight whether {@code y} is weighted already
   * @param stream where to run
   */
  default void applyW2Lora(
      MoeLoraContext context,
      Tensor y,
      Tensor x,
      ExpertRouting routing,
      boolean mulRoutedWeight,
      DeviceStream stream) {
    context.punicaWrapper().addLoraW2(context, y, x, routing, mulRoutedWeight, true, stream);
  }
}
