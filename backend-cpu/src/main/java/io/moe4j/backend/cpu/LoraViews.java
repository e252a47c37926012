package io.moe4j.backend.cpu;

import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import java.util.Arrays;
import org.jspecify.annotations.Nullable;

/** The factors of one call's adapters, by slot. Reused from call to call. */
final class LoraViews {
  private final MlpWeights w;
  final LoraView[] gate;
  final LoraView[] up;
  final LoraView[] down;

  /** By slot: whether it has factors for any of the three. */
  final boolean[] live;

  private boolean any;

  LoraViews(MlpSpec mlp) {
    w = mlp.weights();
    live = new boolean[mlp.maxLoras()];
    gate = views(mlp);
    up = views(mlp);
    down = views(mlp);
  }

  private static LoraView[] views(MlpSpec mlp) {
    LoraView[] v = new LoraView[mlp.maxLoras()];
    Arrays.setAll(v, i -> new LoraView(mlp.kernels()));
    return v;
  }

  /**
   * Takes a call's adapters.
   *
   * @return whether there are any
   */
  boolean set(@Nullable MoeLoraContext context) {
    any = false;
    if (context == null || !context.hasLora()) {
      return false;
    }
    for (int s = 0; s < live.length; s++) {
      LoraLayer layer = s < context.maxLoras() ? context.slot(s) : null;
      set(gate[s], layer, w.gateTarget);
      set(up[s], layer, w.upTarget);
      set(down[s], layer, w.downTarget);
      live[s] = gate[s].rank() + up[s].rank() + down[s].rank() > 0;
      any |= live[s];
    }
    return any;
  }

  private static void set(LoraView view, @Nullable LoraLayer layer, LoraTarget target) {
    view.set(layer == null ? null : layer.get(target));
  }

  /** {@return whether the call has adapters} */
  boolean any() {
    return any;
  }

  /** Lets go of the caller's factors. */
  void clear() {
    for (int s = 0; s < live.length; s++) {
      gate[s].set(null);
      up[s].set(null);
      down[s].set(null);
    }
  }
}
