package io.moe4j.checkpoint;

import io.moe4j.api.CheckpointException;
import io.moe4j.api.tensor.Tensor;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.SortedMap;
import java.util.TreeMap;
import java.util.TreeSet;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Finds the MoE blocks among all tensors of a checkpoint. Strict about what a block needs, tolerant
 * of everything else.
 */
final class CheckpointScan {
  private static final Logger LOG = LoggerFactory.getLogger(CheckpointScan.class);
  private static final int MAX_LAYERS = 10_000;

  /** Of all layers together: each takes some hundred bytes of heap. */
  private static final int MAX_EXPERTS = 1 << 17;

  /**
   * Tensors that are looked through on opening, router's mostly; those beyond are when they are
   * asked for.
   */
  private static final long EAGER_CHECK_BYTES = 256L << 20;

  private final Path directory;
  private final ModelConfig config;
  private final CheckpointLayout layout;
  private final ShardedTensors tensors;
  private final QuantConfig quantised;
  private final List<String> notes = new ArrayList<>();

  /** Root, then layer, then name below the block. */
  private final Map<String, SortedMap<Integer, Map<String, Tensor>>> byRoot = new TreeMap<>();

  /** Root, then layer, then the first part of a name below the block: what precedes it. */
  private final Map<String, SortedMap<Integer, Map<String, String>>> prefixes = new TreeMap<>();

  /** Root, then layer: what is wrong with a tensor of that block. */
  private final Map<String, SortedMap<Integer, String>> damaged = new TreeMap<>();

  /**
   * What was found.
   *
   * @param root of the model
   * @param otherRoots of other towers with MoE layers
   * @param blocks by layer
   * @param predictionLayers layers behind the model's that were left out
   * @param notes remarks
   */
  record Result(
      String root,
      Set<String> otherRoots,
      SortedMap<Integer, LayerReader.Block> blocks,
      int predictionLayers,
      List<String> notes) {}

  /**
   * @param quantised what the config says of quantisation
   */
  CheckpointScan(
      Path directory, LanguageModel model, ShardedTensors tensors, QuantConfig quantised) {
    this.directory = directory;
    this.config = model.config();
    this.layout = model.layout();
    this.tensors = tensors;
    this.quantised = quantised;
    notes.addAll(tensors.notes());
  }

  Result run(Optional<String> wantedRoot) {
    int numLayers = layout.rules().numLayers(config);
    if (numLayers > MAX_LAYERS) {
      throw new CheckpointException(
          config.source() + " says " + numLayers + " layers; accepted are at most " + MAX_LAYERS);
    }
    collect();
    Set<String> roots = rootsWithExperts();
    String root = chooseRoot(roots, wantedRoot);
    SortedMap<Integer, LayerReader.Block> blocks = new TreeMap<>();
    int predictionLayers =
        config.optionalInt(
            0, "num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers");
    long experts = 0;
    long checkedBytes = 0;
    for (Map.Entry<Integer, Map<String, Tensor>> e :
        byRoot.getOrDefault(root, new TreeMap<>()).entrySet()) {
      int layer = e.getKey();
      String where = directory + ": " + StrictJson.shorten(root) + "layer " + layer;
      boolean hasExperts = hasExperts(e.getValue().keySet());
      if (hasExperts && layer >= numLayers) {
        predictionLayers = Math.max(predictionLayers, layer - numLayers + 1);
        notes.add(
            "layer "
                + layer
                + " is left out: the config has "
                + numLayers
                + " layers (multi-token prediction?)");
        continue;
      }
      refuseQuantised(where, e.getValue().keySet());
      if (hasExperts) {
        requireUndamaged(where, root, layer);
        LayerReader.Block block =
            LayerReader.read(
                layout,
                config,
                layer,
                new BlockTensors(where, e.getValue(), name -> fullName(root, layer, name)),
                quantised);
        blocks.put(layer, block);
        experts += block.config().numExperts();
        if (experts > MAX_EXPERTS) {
          throw new CheckpointException(
              directory + " has more than " + MAX_EXPERTS + " experts in all layers");
        }
        checkedBytes += block.checkedBytes();
        if (checkedBytes <= EAGER_CHECK_BYTES) {
          block.check();
        }
      }
    }
    blocks.values().stream()
        .flatMap(b -> b.leftOut().stream())
        .findFirst()
        .ifPresent(name ->
            notes.add(
                "tensors of the MoE blocks like '"
                    + StrictJson.shorten(name)
                    + "' are left out: they are none of the language model's"));
    crossCheck(numLayers, root, blocks.keySet());
    Set<String> others = new TreeSet<>(roots);
    others.remove(root);
    // Names tell such towers; an adapter for the language model need not say that it is not one.
    others.removeIf(OutsideNames::isOtherTower);
    return new Result(root, others, blocks, predictionLayers, notes);
  }

  private void collect() {
    tensors
        .tensors()
        .forEach((name, tensor) -> {
          String plain = WrapperSegments.strip(name);
          for (BlockPath path : layout.blocks()) {
            Optional<BlockPath.Match> match = path.match(plain);
            if (match.isPresent()) {
              BlockPath.Match m = match.get();
              prefixes
                  .computeIfAbsent(m.root(), r -> new TreeMap<>())
                  .computeIfAbsent(m.layer(), l -> new TreeMap<>())
                  .putIfAbsent(
                      firstPart(m.rest()), plain.substring(0, plain.length() - m.rest().length()));
              Tensor before =
                  byRoot
                      .computeIfAbsent(m.root(), r -> new TreeMap<>())
                      .computeIfAbsent(m.layer(), l -> new TreeMap<>())
                      .put(m.rest(), tensor);
              if (before != null) {
                throw new CheckpointException(
                    directory
                        + ": '"
                        + StrictJson.shorten(name)
                        + "' is there twice under different names of the block: "
                        + layout.blocks());
              }
              return;
            }
          }
        });
    tensors
        .problems()
        .forEach((name, problem) -> {
          String plain = WrapperSegments.strip(name);
          for (BlockPath path : layout.blocks()) {
            path.match(plain)
                .ifPresent(m ->
                    damaged
                        .computeIfAbsent(m.root(), r -> new TreeMap<>())
                        .putIfAbsent(m.layer(), "'" + StrictJson.shorten(name) + "' " + problem));
          }
        });
  }

  private static String firstPart(String name) {
    int dot = name.indexOf('.');
    return dot < 0 ? name : name.substring(0, dot);
  }

  /** A name below a block as the files have it. */
  private String fullName(String root, int layer, String name) {
    return prefixes
            .getOrDefault(root, new TreeMap<>())
            .getOrDefault(layer, Map.of())
            .getOrDefault(firstPart(name), "")
        + name;
  }

  private boolean hasExperts(Set<String> names) {
    return names.stream().anyMatch(n -> LayerReader.isExpertTensor(layout, n));
  }

  private Set<String> rootsWithExperts() {
    Set<String> roots = new TreeSet<>();
    byRoot.forEach((root, layers) -> {
      if (layers.values().stream()
          .map(Map::keySet)
          .anyMatch(n -> hasExperts(n) || QuantisedNames.recognise(n).isPresent())) {
        roots.add(root);
      }
    });
    return roots;
  }

  private String chooseRoot(Set<String> roots, Optional<String> wanted) {
    if (wanted.isPresent()) {
      if (!roots.contains(wanted.get())) {
        throw new CheckpointException(
            directory
                + " holds no routed experts under the root '"
                + StrictJson.shorten(wanted.get())
                + "'; those with experts are "
                + quoted(roots));
      }
      return wanted.get();
    }
    List<String> models = new ArrayList<>();
    for (String root : roots) {
      if (("." + root).contains(".mtp.")) {
        notes.add(
            "tensors under '"
                + StrictJson.shorten(root)
                + "' are left out: multi-token prediction");
      } else if (roots.size() > 1 && OutsideNames.isOtherTower(root)) {
        notes.add(
            "tensors under '"
                + StrictJson.shorten(root)
                + "' are left out: not the language model");
      } else {
        models.add(root);
      }
    }
    if (models.isEmpty()) {
      throw noExperts();
    }
    if (models.size() > 1) {
      throw new CheckpointException(
          directory
              + " holds routed experts under several roots: "
              + quoted(models)
              + "; CheckpointOptions.withRoot says which model is meant");
    }
    return models.getFirst();
  }

  private static String quoted(Iterable<String> roots) {
    List<String> shown = new ArrayList<>();
    roots.forEach(r -> shown.add("'" + StrictJson.shorten(r) + "'"));
    return shown.isEmpty() ? "none" : String.join(", ", shown);
  }

  private CheckpointException noExperts() {
    if (quantised.said().isPresent()) {
      return new CheckpointException(
          directory
              + ": the model is quantised ("
              + quantised.said().get()
              + "), and its experts are in no form that is read here"
              + LayerReader.ACCEPTED);
    }
    Optional<String> any =
        damaged.values().stream().flatMap(layers -> layers.values().stream()).findFirst();
    return new CheckpointException(
        directory
            + " holds no routed experts of model_type "
            + layout.modelType()
            + ": no tensor of its "
            + tensors.tensors().size()
            + " looks like [root.]"
            + layout.blocks().getFirst()
            + "."
            + String.join(" or ", layout.forms().stream().map(ExpertForm::example).toList())
            + any.map(problem -> "; " + problem).orElse(""));
  }

  private void requireUndamaged(String where, String root, int layer) {
    String problem = damaged.getOrDefault(root, new TreeMap<>()).get(layer);
    if (problem != null) {
      throw new CheckpointException(where + ": " + problem);
    }
  }

  private void refuseQuantised(String where, Set<String> block) {
    if (layout.forms().stream()
        .anyMatch(
            f -> f instanceof ExpertForm.Mxfp4Stacked m && block.stream().anyMatch(m::names))) {
      return;
    }
    QuantisedNames.recognise(block)
        .ifPresent(kind -> {
          throw new CheckpointException(
              where
                  + ": the routed experts are quantised: "
                  + kind
                  + quantised.said().map(q -> " (" + q + ")").orElse("")
                  + LayerReader.ACCEPTED);
        });
  }

  private void crossCheck(int numLayers, String root, Set<Integer> found) {
    List<Integer> missing = new ArrayList<>();
    List<Integer> surplus = new ArrayList<>();
    Optional<List<String>> types = config.optionalStrings("mlp_layer_types");
    for (int layer = 0; layer < numLayers; layer++) {
      int l = layer;
      boolean expected =
          types
              .map(t -> l < t.size() && !t.get(l).equals("dense"))
              .orElseGet(() -> layout.rules().isMoeLayer(config, l));
      if (expected && !found.contains(layer)) {
        missing.add(layer);
      } else if (!expected && found.contains(layer)) {
        surplus.add(layer);
      }
    }
    if (!missing.isEmpty()) {
      String why = damaged.getOrDefault(root, new TreeMap<>()).get(missing.getFirst());
      throw new CheckpointException(
          directory
              + ": by "
              + config.source()
              + " layers "
              + StrictJson.shorten(missing.toString())
              + " have routed experts, but the files hold none for them; they hold layers "
              + StrictJson.shorten(found.toString())
              + (why == null ? "" : "; " + why));
    }
    if (!surplus.isEmpty()) {
      String note =
          "layers " + surplus + " hold routed experts although the config calls them dense";
      notes.add(note);
      LOG.warn("{}: {}", directory, note);
    }
  }
}
