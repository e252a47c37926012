package io.moe4j.checkpoint;

import java.util.List;
import java.util.Objects;
import java.util.Optional;

/**
 * How the shared expert is stored: names of its linear maps, relative to the block. A map's tensor
 * is that name and {@code .weight}, its bias, if it has one, that name and {@code .bias}.
 *
 * @param gate like {@code shared_experts.gate_proj}; empty where there is no gate or where it is
 *     fused with up
 * @param up like {@code shared_experts.up_proj}, or gate and up together ({@code [2I, H]}, gate
 *     rows first)
 * @param down like {@code shared_experts.down_proj}
 * @param fused whether {@code up} holds gate and up together
 */
public record SharedForm(Optional<String> gate, String up, String down, boolean fused) {
  /** Checks that nothing is missing. */
  public SharedForm {
    Objects.requireNonNull(gate, "gate");
    Objects.requireNonNull(up, "up");
    Objects.requireNonNull(down, "down");
    if (fused && gate.isPresent()) {
      throw new IllegalArgumentException(
          "gate is '" + gate.get() + "', but up '" + up + "' holds the gate already");
    }
  }

  /**
   * A module with {@code gate_proj}, {@code up_proj}, {@code down_proj}; the gate is missing where
   * the activation has none.
   *
   * @param module like {@code shared_experts}
   * @return the form
   */
  public static SharedForm ofModule(String module) {
    return new SharedForm(
        Optional.of(module + ".gate_proj"), module + ".up_proj", module + ".down_proj", false);
  }

  /**
   * Gate and up as one linear map.
   *
   * @param gateUp like {@code shared_mlp.input_linear}
   * @param down like {@code shared_mlp.output_linear}
   * @return the form
   */
  public static SharedForm ofFused(String gateUp, String down) {
    return new SharedForm(Optional.empty(), gateUp, down, true);
  }

  /** The names of all maps. */
  List<String> modules() {
    return gate.map(g -> List.of(g, up, down)).orElseGet(() -> List.of(up, down));
  }
}
