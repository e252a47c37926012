package io.moe4j.api.lora;

import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.tensor.Tensor;
import java.util.OptionalInt;
import org.jspecify.annotations.Nullable;

/**
 * Everything an experts backend needs to apply LoRA in one forward of one layer, handed over
 * explicitly: no hidden state, no patched methods. Valid until its maker releases it (for a
 * registry: until the batch is closed); slots do not change meanwhile. May be read by several
 * threads.
 *
 * @since 0.1.0
 */
public interface MoeLoraContext {
  /**
   * {@return the index of the layer in its model that the factors belong to, where it is known; a
   * layer that knows its own index refuses the context of another}
   */
  default OptionalInt layerIndex() {
    return OptionalInt.empty();
  }

  /** {@return the number of slots; slots are {@code 0..maxLoras-1}} */
  int maxLoras();

  /**
   * {@return the slot of each token, int32 {@code [T]}, -1 = base only; {@code [E_local,
   * maxTokens]} for BATCHED experts, whose rows past an expert's count are undefined. On the
   * layer's device}
   */
  Tensor tokenLoraMapping();

  /**
   * {@return whether any token has an adapter, known on the host; false lets a backend skip LoRA
   * without reading the mapping}
   */
  boolean hasLora();

  /**
   * {@return the factors in a slot for this layer, on the layer's device; null when the slot is
   * empty or its adapter leaves this layer alone}
   *
   * @param slot {@code 0..maxLoras-1}
   */
  @Nullable LoraLayer slot(int slot);

  /**
   * {@return whether {@link #tokenLoraMapping} may name a slot}. What {@link #slot} says of others
   * means nothing to this context's forward, so a device-side copy need not follow it
   *
   * @param slot {@code 0..maxLoras-1}
   */
  default boolean uses(int slot) {
    return true;
  }

  /**
   * {@return what contexts of one layer's slots have in common, compared by identity; null if
   * there is none}. Contexts with the same key agree about every slot that both
   * {@linkplain #uses use} at one time, so a device-side copy of the slots can be kept for the key
   * and written in place: a slot changes hands only after the work that reads it has finished
   */
  default @Nullable SlotsKey slotsKey() {
    return null;
  }

  /**
   * Makes a stream's later work wait, on the device, until it may read the factors of the
   * {@linkplain #uses used} slots (they may still be on their way) and may overwrite what it keeps
   * about those slots (earlier forwards may still read what stood there before). The host does not
   * wait. A layer does so in front of every forward and refresh; code that reads factors without a layer
   * must call it. Does nothing to a stream that is being recorded, and nothing at all by default.
   *
   * @param stream of the factors' device
   */
  default void awaitFactors(DeviceStream stream) {}

  /** {@return adds deltas for backends that do not fuse them} */
  PunicaWrapper punicaWrapper();

  /**
   * {@return the same slots under another mapping: for tokens that were dispatched (batched, or
   * gathered from other ranks)}
   *
   * @param tokenLoraMapping int32, {@code [T']} or {@code [E_local, maxTokens]}
   */
  MoeLoraContext withTokenLoraMapping(Tensor tokenLoraMapping);
}
