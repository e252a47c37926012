package io.moe4j.lora;

import io.moe4j.api.AdapterException;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.SortedMap;
import org.jspecify.annotations.Nullable;

/** The door to the registry: an adapter fits every layer it names, or is refused with its name. */
final class AdapterCheck {
  /** What a thread waits for to be told of a fault: nothing. */
  private static final Object NOBODY = new Object();

  /** A tensor that was checked, and for which dtype. */
  private record Checked(Tensor tensor, @Nullable DType rounded) {}

  private AdapterCheck() {}

  /**
   * Checks an adapter.
   *
   * @param layers configs by layer index
   * @param punica who will apply it
   * @return what it does, by position in {@code layers}; null where it does nothing
   * @throws AdapterException naming adapter, layer, target, what is there and what fits; also for
   *     an element that is not finite, or would not be in the dtype of the layer's weights
   */
  static @Nullable LoraLayer[] byOrdinal(
      LoraAdapter adapter, SortedMap<Integer, MoeConfig> layers, PunicaWrapper punica) {
    for (Integer index : adapter.layers().keySet()) {
      if (!layers.containsKey(index)) {
        throw new AdapterException(
            "adapter '%s', layer %d: the model has no MoE layer of that index; it has %s"
                .formatted(adapter.name(), index, layers.keySet()));
      }
    }
    @Nullable LoraLayer[] out = new LoraLayer[layers.size()];
    int ordinal = 0;
    for (Map.Entry<Integer, MoeConfig> e : layers.entrySet()) {
      LoraLayer layer = adapter.layer(e.getKey());
      DType weights = e.getValue().weightDtype();
      List<Checked> seen = new ArrayList<>();
      String who = "adapter '%s', layer %d: ".formatted(adapter.name(), e.getKey());
      try {
        layer.requireFits(e.getValue());
      } catch (IllegalArgumentException problem) {
        throw new AdapterException(who + problem.getMessage(), problem);
      }
      layer
          .factors()
          .forEach((target, f) -> {
            if (!punica.supports(target)) {
              throw new AdapterException(
                  who + "factors of " + target + " are not applied on this device");
            }
            requireReadable(who + target + " a", f.a());
            requireReadable(who + target + " b", f.b());
            // Backends add the experts' deltas in the dtype of the weights; other parts of a block
            // compute with factors as they are.
            @Nullable DType rounded = target.isRouted() ? weights : null;
            requireValues(who + target + " a", f.a(), rounded, seen);
            requireValues(who + target + " b", f.b(), rounded, seen);
          });
      out[ordinal++] = layer.factors().isEmpty() ? null : layer;
    }
    return out;
  }

  /** Each tensor once: gate and up of a fused adapter share theirs. */
  private static void requireValues(
      String who, Tensor t, @Nullable DType rounded, List<Checked> seen) {
    if (seen.stream().anyMatch(s -> s.rounded() == rounded && Tensors.sameView(s.tensor(), t))) {
      return;
    }
    seen.add(new Checked(t, rounded));
    long @Nullable [] at;
    try {
      at = FactorValues.outOfRange(t, rounded == null ? t.dtype() : rounded);
      // HotSpot reports a fault at the thread's next stop, and a call into it is one.
      if (Thread.holdsLock(NOBODY)) {
        throw new IllegalStateException("nobody locks this");
      }
    } catch (InternalError e) {
      throw new AdapterException(
          who + ": its file was changed in place while it was read (" + e.getMessage() + ")", e);
    }
    if (at == null) {
      return;
    }
    double value = t.get(at);
    throw new AdapterException(
        "%s, %selement [%d, %d] is %s; %s"
            .formatted(
                who,
                t.size(0) == 1 || t.stride(0) == 0 ? "" : "expert " + at[0] + ", ",
                at[1],
                at[2],
                (float) value,
                Double.isFinite(value)
                    ? "the layer's weights are "
                        + rounded
                        + ", so factors must be within +-"
                        + (float) FactorValues.largest(rounded == null ? t.dtype() : rounded)
                    : "factors must be finite"));
  }

  private static void requireReadable(String who, Tensor t) {
    if (!Tensors.isFloat(t.dtype()) || !t.isHost()) {
      throw new AdapterException(who + " is " + t + ", must be F32, BF16 or F16 in host memory");
    }
  }
}
