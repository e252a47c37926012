package io.moe4j.checkpoint;

import io.moe4j.api.lora.LoraTarget;
import io.moe4j.checkpoint.AdapterAssembler.Contribution;
import io.moe4j.checkpoint.CheckpointLayout.FusedParameter;
import io.moe4j.checkpoint.CheckpointLayout.FusedParameter.Kind;
import java.util.EnumSet;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.TreeMap;
import java.util.stream.Stream;

/**
 * Whether an adapter holds what its config names in the MoE blocks. Where a layer has factors for
 * one of the experts' parameters that the config targets, it has them for all; an adapter that has
 * none at all was saved without them.
 */
final class PromisedTensors {
  private PromisedTensors() {}

  /**
   * What the config names and the file lacks.
   *
   * @param contributions everything that is applied
   * @return in words, or empty
   */
  static Optional<String> missing(
      AdapterConfig config,
      AdapterTargetModel model,
      WrapperResolver wrappers,
      List<Contribution> contributions) {
    Map<Integer, Set<LoraTarget>> byLayer = new TreeMap<>();
    contributions.stream()
        .filter(c -> c.target().isRouted())
        .forEach(c ->
            byLayer
                .computeIfAbsent(c.layer(), l -> EnumSet.noneOf(LoraTarget.class))
                .add(c.target()));
    Set<String> missing = new LinkedHashSet<>();
    for (int layer : byLayer.isEmpty() ? model.layers().keySet() : byLayer.keySet()) {
      Set<LoraTarget> there = byLayer.getOrDefault(layer, Set.of());
      for (FusedParameter p : wrappers.targeted(layer)) {
        boolean down = p.kind() == Kind.DOWN;
        if (there.stream().noneMatch(t -> (t == LoraTarget.DOWN) == down)) {
          missing.add(p.name() + " of layer " + layer);
        }
      }
    }
    if (!missing.isEmpty()) {
      return Optional.of(
          "target_parameters name parameters of the experts that the file holds no factors for: "
              + StrictJson.shorten(String.join(", ", missing)));
    }
    // Had the file held one, it would have been left out of its block already.
    List<String> unsaved =
        config.modulesToSave().stream().filter(s -> !s.isBlank() && isInBlocks(s, model)).toList();
    return unsaved.isEmpty()
        ? Optional.empty()
        : Optional.of(
            "modules_to_save names parts of the MoE blocks that the file does not hold: "
                + StrictJson.shorten(String.join(", ", unsaved)));
  }

  /** Whether PEFT would take a block, its experts or its router by this end of a name. */
  private static boolean isInBlocks(String end, AdapterTargetModel model) {
    CheckpointLayout layout = model.layout();
    return model.layers().keySet().stream()
        .flatMap(layer -> layout.blocks().stream().map(b -> b.of(layer)))
        .flatMap(block ->
            Stream.concat(
                Stream.of(block, block + ".experts"),
                layout.routerWeights().stream()
                    .map(w -> block + "." + w.replaceFirst("\\.weight$", ""))))
        .anyMatch(name -> name.endsWith(end) || end.endsWith("." + name));
  }
}
