package io.moe4j.api.spi;

import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.lora.PunicaWrapper;

/**
 * Experts that apply LoRA, modular or monolithic: what implements this implements {@link
 * ModularExperts} or {@link MonolithicExperts} as well. The default methods let the context's punica wrapper add the
 * deltas: call {@link #applyW13Lora} between the w13 product and the activation, {@link
 * #applyW2Lora} between the w2 product and the weighted sum. A backend may instead read the factors
 * from the context and fuse; the result must be the same.
 *
 * @since 0.1.0
 */
public interface LoraExperts {
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
   * @param call the w13 product, what it read, and the batch's adapters
   * @param stream where to run
   */
  default void applyW13Lora(PunicaWrapper.W13 call, DeviceStream stream) {
    call.context().punicaWrapper().addLoraW13(call, stream);
  }

  /**
   * Adds down deltas.
   *
   * @param call the w2 product, what it read, and the batch's adapters
   * @param stream where to run
   */
  default void applyW2Lora(PunicaWrapper.W2 call, DeviceStream stream) {
    call.context().punicaWrapper().addLoraW2(call, stream);
  }
}
