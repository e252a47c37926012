package io.moe4j.checkpoint;

import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.api.CheckpointException;
import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import java.lang.foreign.Arena;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.SortedMap;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.function.Function;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * A Hugging Face checkpoint directory with MoE layers: {@code config.json} and safetensors files.
 * The files stay mapped while this is open; weights are views of them, nothing is copied.
 * Immutable, safe to share between threads; closing unmaps, and every weight handed out becomes
 * unusable.
 *
 * <p>The MoE layers are those whose experts are in the files. A layer that should have experts by
 * the config and has none, or has some but not all, is an error; so is a tensor in a block that the
 * layout does not know.
 */
public final class MoeCheckpoint implements AutoCloseable {
  private static final Logger LOG = LoggerFactory.getLogger(MoeCheckpoint.class);
  private static final int MAX_LAYERS = 10_000;
  private static final List<String> NESTED_CONFIGS =
      List.of("text_config", "llm_config", "language_config");

  private final Path directory;
  private final Arena arena;
  private final ShardedTensors tensors;
  private final ModelConfig config;
  private final CheckpointLayout layout;
  private final SortedMap<Integer, LayerReader.Block> blocks;
  private final String root;
  private final List<String> notes;

  private MoeCheckpoint(
      Path directory,
      Arena arena,
      ShardedTensors tensors,
      ModelConfig config,
      CheckpointLayout layout,
      String root,
      SortedMap<Integer, LayerReader.Block> blocks,
      List<String> notes) {
    this.directory = directory;
    this.arena = arena;
    this.tensors = tensors;
    this.config = config;
    this.layout = layout;
    this.root = root;
    this.blocks = Collections.unmodifiableSortedMap(blocks);
    this.notes = List.copyOf(notes);
  }

  /**
   * Opens a checkpoint of a known family.
   *
   * @param directory holds {@code config.json} and the safetensors files
   * @return the checkpoint, to be closed by the caller
   * @throws CheckpointException if a file is damaged, missing, or holds what is not understood
   */
  public static MoeCheckpoint open(Path directory) {
    return open(directory, CheckpointOptions.DEFAULT);
  }

  /**
   * Opens a checkpoint.
   *
   * @param directory holds {@code config.json} and the safetensors files
   * @param options further layouts, progress
   * @return the checkpoint, to be closed by the caller
   * @throws CheckpointException if a file is damaged, missing, or holds what is not understood
   */
  public static MoeCheckpoint open(Path directory, CheckpointOptions options) {
    Path configFile = directory.resolve("config.json");
    ObjectNode json = StrictJson.readObject(configFile, StrictJson.MAX_CONFIG_BYTES);
    Map<String, CheckpointLayout> layouts = options.allLayouts();
    ModelConfig top = new ModelConfig(configFile.toString(), json);
    ModelConfig config = languageModel(top, layouts);
    CheckpointLayout layout = layouts.get(config.optionalString("model_type").orElse(""));
    if (layout == null) {
      throw unknownType(top, layouts.keySet());
    }
    Arena arena = Arena.ofShared();
    try {
      ShardedTensors tensors = ShardedTensors.open(directory, arena, options.progress());
      return new Scan(directory, config, layout, tensors).finish(arena);
    } catch (RuntimeException | Error e) {
      arena.close();
      throw e;
    }
  }

  /** A wrapped model (vision and language) keeps the language model's config one level down. */
  private static ModelConfig languageModel(ModelConfig top, Map<String, CheckpointLayout> layouts) {
    if (top.optionalString("model_type").map(layouts::containsKey).orElse(false)) {
      return top;
    }
    for (String key : NESTED_CONFIGS) {
      Optional<ModelConfig> nested = top.optionalObject(key);
      if (nested.isPresent()
          && nested.get().optionalString("model_type").map(layouts::containsKey).orElse(false)) {
        return nested.get();
      }
    }
    return top;
  }

  private static CheckpointException unknownType(ModelConfig config, Set<String> known) {
    return new CheckpointException(
        config.source()
            + ": model_type is "
            + config
                .optionalString("model_type")
                .map(t -> "'" + StrictJson.shorten(t) + "'")
                .orElse("missing")
            + "; known are "
            + String.join(", ", new TreeSet<>(known))
            + ". Another model is described with CheckpointLayout.builder(modelType) and opened with"
            + " MoeCheckpoint.open(directory, CheckpointOptions.DEFAULT.withLayout(layout))");
  }

  /** Finds the blocks among all tensors. */
  private static final class Scan {
    private final Path directory;
    private final ModelConfig config;
    private final CheckpointLayout layout;
    private final ShardedTensors tensors;
    private final List<String> notes = new ArrayList<>();

    /** Root, then layer, then name below the block. */
    private final Map<String, SortedMap<Integer, Map<String, Tensor>>> byRoot = new TreeMap<>();

    private final Map<Integer, String> prefixes = new TreeMap<>();

    Scan(Path directory, ModelConfig config, CheckpointLayout layout, ShardedTensors tensors) {
      this.directory = directory;
      this.config = config;
      this.layout = layout;
      this.tensors = tensors;
    }

    MoeCheckpoint finish(Arena arena) {
      int numLayers = layout.rules().numLayers(config);
      if (numLayers > MAX_LAYERS) {
        throw new CheckpointException(
            config.source() + " says " + numLayers + " layers; accepted are at most " + MAX_LAYERS);
      }
      collect();
      String root = chooseRoot(numLayers);
      SortedMap<Integer, Map<String, Tensor>> candidates =
          byRoot.getOrDefault(root, new TreeMap<>());
      SortedMap<Integer, LayerReader.Block> blocks = new TreeMap<>();
      for (Map.Entry<Integer, Map<String, Tensor>> e : candidates.entrySet()) {
        int layer = e.getKey();
        String where = directory + ": " + prefixes.getOrDefault(layer, "layer " + layer);
        boolean experts =
            e.getValue().keySet().stream().anyMatch(n -> LayerReader.isExpertTensor(layout, n));
        if (!experts) {
          refuseQuantised(where, e.getValue());
        } else if (layer >= numLayers) {
          notes.add(
              "layer "
                  + layer
                  + " is left out: the config has "
                  + numLayers
                  + " layers (multi-token prediction?)");
        } else {
          refuseQuantised(where, e.getValue());
          blocks.put(layer, LayerReader.read(where, layout, config, layer, e.getValue()));
        }
      }
      crossCheck(numLayers, blocks.keySet());
      return new MoeCheckpoint(directory, arena, tensors, config, layout, root, blocks, notes);
    }

    private void collect() {
      tensors
          .tensors()
          .forEach((name, tensor) -> {
            for (BlockPath path : layout.blocks()) {
              Optional<BlockPath.Match> match = path.match(name);
              if (match.isPresent()) {
                BlockPath.Match m = match.get();
                Tensor before =
                    byRoot
                        .computeIfAbsent(m.root(), r -> new TreeMap<>())
                        .computeIfAbsent(m.layer(), l -> new TreeMap<>())
                        .put(m.rest(), tensor);
                if (before != null) {
                  throw new CheckpointException(
                      directory
                          + ": '"
                          + name
                          + "' is there twice under different names of the block: "
                          + layout.blocks());
                }
                return;
              }
            }
          });
    }

    private String chooseRoot(int numLayers) {
      List<String> withExperts = new ArrayList<>();
      byRoot.forEach((root, layers) -> {
        boolean experts =
            layers.values().stream()
                .anyMatch(names ->
                    names.keySet().stream().anyMatch(n -> LayerReader.isExpertTensor(layout, n))
                        || QuantisedNames.recognise(names.keySet()).isPresent());
        boolean mtp = ("." + root).contains(".mtp.");
        if (experts && mtp) {
          notes.add("tensors under '" + root + "' are left out: multi-token prediction");
        } else if (experts) {
          withExperts.add(root);
        }
      });
      if (withExperts.isEmpty()) {
        throw new CheckpointException(
            directory
                + " holds no routed experts of model_type "
                + layout.modelType()
                + ": no tensor of its "
                + tensors.tensors().size()
                + " looks like [root.]"
                + layout.blocks().getFirst()
                + " with "
                + layout.forms());
      }
      if (withExperts.size() > 1) {
        throw new CheckpointException(
            directory
                + " holds routed experts under several roots: "
                + withExperts
                + "; one model is expected");
      }
      String root = withExperts.getFirst();
      byRoot.getOrDefault(root, new TreeMap<>()).keySet().stream()
          .filter(l -> l < numLayers)
          .forEach(l -> prefixes.put(l, root + "layer " + l));
      return root;
    }

    private void refuseQuantised(String where, Map<String, Tensor> block) {
      if (layout.forms().stream()
          .anyMatch(f ->
              f instanceof ExpertForm.Mxfp4Stacked m
                  && block.keySet().stream().anyMatch(m::names))) {
        return;
      }
      QuantisedNames.recognise(block.keySet())
          .ifPresent(kind -> {
            String method =
                config
                    .optionalObject("quantization_config")
                    .flatMap(q -> q.optionalString("quant_method"))
                    .map(m -> " (quant_method '" + StrictJson.shorten(m) + "')")
                    .orElse("");
            throw new CheckpointException(
                where
                    + ": the routed experts are quantised: "
                    + kind
                    + method
                    + ". Accepted are F32, BF16 and F16 experts, and MXFP4 of gpt_oss; a copy of the model that was"
                    + " dequantised to bf16 works");
          });
    }

    private void crossCheck(int numLayers, Set<Integer> found) {
      List<Integer> missing = new ArrayList<>();
      List<Integer> surplus = new ArrayList<>();
      Optional<List<String>> types = config.optionalStrings("mlp_layer_types");
      for (int layer = 0; layer < numLayers; layer++) {
        int l = layer;
        boolean expected =
            types
                .map(t -> l < t.size() && t.get(l).equals("sparse"))
                .orElseGet(() -> layout.rules().isMoeLayer(config, l));
        if (expected && !found.contains(layer)) {
          missing.add(layer);
        } else if (!expected && found.contains(layer)) {
          surplus.add(layer);
        }
      }
      if (!missing.isEmpty()) {
        throw new CheckpointException(
            directory
                + ": by "
                + config.source()
                + " layers "
                + StrictJson.shorten(missing.toString())
                + " have routed experts, but the files hold none for them; they hold layers "
                + StrictJson.shorten(found.toString()));
      }
      if (!surplus.isEmpty()) {
        String note =
            "layers " + surplus + " hold routed experts although the config calls them dense";
        notes.add(note);
        LOG.warn("{}: {}", directory, note);
      }
    }
  }

  /** {@return where the checkpoint is} */
  public Path directory() {
    return directory;
  }

  /** {@return the language model's {@code model_type}} */
  public String modelType() {
    return layout.modelType();
  }

  /** {@return the layout the checkpoint was read with} */
  public CheckpointLayout layout() {
    return layout;
  }

  /** {@return the language model's config} */
  public ModelConfig config() {
    return config;
  }

  /** {@return the indices of the MoE layers, ascending; not empty} */
  public List<Integer> layers() {
    return List.copyOf(blocks.keySet());
  }

  /** {@return what precedes the layers in tensor names, empty or ending in a dot} */
  public String root() {
    return root;
  }

  /** {@return remarks on what was left out} */
  public List<String> notes() {
    return notes;
  }

  /** {@return all tensors of all files by name} */
  public Map<String, Tensor> tensors() {
    return tensors.tensors();
  }

  private LayerReader.Block block(int layer) {
    LayerReader.Block block = blocks.get(layer);
    if (block == null) {
      throw new IllegalArgumentException(
          "layer " + layer + " is no MoE layer of " + directory + "; those are " + layers());
    }
    return block;
  }

  /**
   * One layer's config: sizes, activation, routing, shared expert as the checkpoint has them, F32
   * input, no LoRA. {@link MoeConfig#toBuilder()} adds what the caller decides.
   *
   * @param layer one of {@link #layers()}
   * @return the config
   */
  public MoeConfig config(int layer) {
    return block(layer).config();
  }

  /**
   * One layer's weights, all experts.
   *
   * @param layer one of {@link #layers()}
   * @return views, valid until this is closed
   */
  public MoeLayerWeights weights(int layer) {
    return block(layer).weights().withLayerIndex(layer);
  }

  /**
   * One layer's weights with the experts of one rank.
   *
   * @param layer one of {@link #layers()}
   * @param expertMap which experts are local, and in which order
   * @return views, valid until this is closed
   */
  public MoeLayerWeights weights(int layer, ExpertMap expertMap) {
    MoeLayerWeights all = weights(layer);
    if (expertMap.numGlobalExperts() != all.experts().numExperts()) {
      throw new IllegalArgumentException(
          "expertMap covers "
              + expertMap.numGlobalExperts()
              + " experts, layer "
              + layer
              + " has "
              + all.experts().numExperts());
    }
    SortedMap<Integer, ExpertWeights.Expert> local = new TreeMap<>();
    for (int e = 0; e < expertMap.numGlobalExperts(); e++) {
      if (expertMap.local(e) >= 0) {
        local.put(expertMap.local(e), all.experts().expert(e));
      }
    }
    return new MoeLayerWeights(
            new ExpertWeights(List.copyOf(local.values())),
            all.router(),
            all.shared(),
            all.latent())
        .withLayerIndex(layer);
  }

  /** {@return what an adapter needs to know of this model} */
  public AdapterTargetModel adapterTarget() {
    Map<Integer, MoeConfig> configs = new TreeMap<>();
    blocks.forEach((layer, block) -> configs.put(layer, block.config()));
    return new AdapterTargetModel(layout, configs, layout.rules().numLayers(config));
  }

  /** {@return a readable summary of the checkpoint} */
  public CheckpointDescription describe() {
    Function<Map.Entry<Integer, LayerReader.Block>, CheckpointDescription.Layer> layer =
        e ->
            CheckpointDescription.Layer.of(e.getKey(), e.getValue().config(), e.getValue().bytes());
    return new CheckpointDescription(
        directory,
        modelType(),
        root,
        layout.rules().numLayers(config),
        tensors.files().stream()
            .map(f ->
                new CheckpointDescription.File(
                    String.valueOf(f.path().getFileName()), f.fileSize(), f.tensors().size()))
            .toList(),
        tensors.bytes(),
        tensors.tensors().size(),
        blocks.entrySet().stream().map(layer).toList(),
        notes);
  }

  /** Unmaps the files. Weights handed out must not be used any more. */
  @Override
  public void close() {
    if (arena.scope().isAlive()) {
      arena.close();
    }
  }
}
