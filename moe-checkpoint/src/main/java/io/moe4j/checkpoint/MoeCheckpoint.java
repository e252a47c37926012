package io.moe4j.checkpoint;

import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.api.CheckpointException;
import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import java.lang.foreign.Arena;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.SortedMap;
import java.util.TreeMap;
import java.util.function.Function;

/**
 * A Hugging Face checkpoint directory with MoE layers: {@code config.json} and safetensors files.
 * The files stay mapped while this is open; weights are views of them, nothing is copied.
 * Immutable, safe to share between threads; closing unmaps, and every weight handed out becomes
 * unusable.
 *
 * <p>The MoE layers are those whose experts are in the files. A layer that should have experts by
 * the config and has none, or has some but not all, is an error; so is a tensor in a block that the
 * layout does not know, and a part of a block that the config promises and the files lack. What
 * stands outside the blocks may be damaged or missing; {@link #notes()} says so.
 *
 * <p>Of the experts' weights nothing is read before a layer is prepared, so their values are not
 * looked at: one that is no number makes the results of tokens that choose its expert none, and of
 * no others. In a router, where it would reach every token, it is an error.
 */
public final class MoeCheckpoint implements AutoCloseable {
  /**
   * The name under which a layout is found beside config.json.
   *
   * @since 0.2.0
   */
  public static final String LAYOUT_FILE = "moe4j-layout.json";

  private static final String CONFIG = "config.json";

  private final Path directory;
  private final Arena arena;
  private final ShardedTensors tensors;
  private final ModelConfig config;
  private final CheckpointLayout layout;
  private final CheckpointScan.Result found;

  private MoeCheckpoint(
      Path directory,
      Arena arena,
      ShardedTensors tensors,
      LanguageModel model,
      CheckpointScan.Result found) {
    this.directory = directory;
    this.arena = arena;
    this.tensors = tensors;
    this.config = model.config();
    this.layout = model.layout();
    this.found = found;
  }

  /**
   * Opens a checkpoint of a known family, or with a layout in a file {@value #LAYOUT_FILE} beside
   * config.json.
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
   * @param options further layouts, progress, which of several models
   * @return the checkpoint, to be closed by the caller
   * @throws CheckpointException if a file is damaged, missing, or holds what is not understood
   */
  public static MoeCheckpoint open(Path directory, CheckpointOptions options) {
    Path configFile = directory.resolve(CONFIG);
    if (Files.isDirectory(directory) && !Files.exists(configFile)) {
      throw new CheckpointException(
          configFile + " does not exist" + Folders.hint(directory, CONFIG));
    }
    ObjectNode json = StrictJson.readObject(configFile, StrictJson.MAX_CONFIG_BYTES);
    ModelConfig top = new ModelConfig(configFile.toString(), json);
    LanguageModel model = LanguageModel.find(top, layouts(directory, options));
    Arena arena = Arena.ofShared();
    try {
      ShardedTensors tensors = ShardedTensors.open(directory, arena, options.progress());
      CheckpointScan scan =
          new CheckpointScan(
              directory, model, tensors, QuantConfig.find(directory, List.of(model.config(), top)));
      return ReadFault.guard(
          directory,
          () -> new MoeCheckpoint(directory, arena, tensors, model, scan.run(options.root())));
    } catch (RuntimeException | Error e) {
      arena.close();
      throw e;
    }
  }

  /** The known ones, over them those of the folder, over them those of the caller. */
  private static Map<String, CheckpointLayout> layouts(Path directory, CheckpointOptions options) {
    Map<String, CheckpointLayout> layouts = new LinkedHashMap<>(KnownLayouts.all());
    Path own = directory.resolve(LAYOUT_FILE);
    if (Files.exists(own)) {
      CheckpointLayout.load(own).forEach(l -> layouts.put(l.modelType(), l));
    }
    layouts.putAll(options.layouts());
    return layouts;
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
    return List.copyOf(found.blocks().keySet());
  }

  /** {@return what precedes the layers in tensor names, empty or ending in a dot} */
  public String root() {
    return found.root();
  }

  /** {@return remarks on what was left out} */
  public List<String> notes() {
    return List.copyOf(found.notes());
  }

  /**
   * {@return all tensors of all files by name, as far as they can be read}
   *
   * @throws IllegalStateException if this is closed
   */
  public Map<String, Tensor> tensors() {
    requireOpen();
    return tensors.tensors();
  }

  private void requireOpen() {
    if (!arena.scope().isAlive()) {
      throw new IllegalStateException(
          "the checkpoint " + directory + " is closed; its weights live as long as it is open");
    }
  }

  private LayerReader.Block block(int layer) {
    LayerReader.Block block = found.blocks().get(layer);
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
   * @throws CheckpointException if a tensor of the router holds NaN or infinite values, or one of a
   *     quantised weight what the config contradicts
   * @throws IllegalStateException if this is closed
   */
  public MoeLayerWeights weights(int layer) {
    LayerReader.Block block = block(layer);
    requireOpen();
    block.check();
    return block.weights().withLayerIndex(layer);
  }

  /**
   * One layer's weights with the experts of one rank.
   *
   * @param layer one of {@link #layers()}
   * @param expertMap which experts are local, and in which order
   * @return views, valid until this is closed
   * @throws CheckpointException if a tensor of the router holds NaN or infinite values, or one of a
   *     quantised weight what the config contradicts
   * @throws IllegalStateException if this is closed
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
    return all.withExperts(new ExpertWeights(List.copyOf(local.values())));
  }

  /** {@return what an adapter needs to know of this model} */
  public AdapterTargetModel adapterTarget() {
    Map<Integer, MoeConfig> configs = new TreeMap<>();
    found.blocks().forEach((layer, block) -> configs.put(layer, block.config()));
    return new AdapterTargetModel(
        layout,
        configs,
        layout.rules().numLayers(config),
        found.predictionLayers(),
        Optional.of(found.root()),
        found.otherRoots());
  }

  /** {@return a readable summary of the checkpoint} */
  public CheckpointDescription describe() {
    Function<Map.Entry<Integer, LayerReader.Block>, CheckpointDescription.Layer> layer =
        e -> CheckpointDescription.Layer.of(e.getKey(), e.getValue());
    return new CheckpointDescription(
        directory,
        modelType(),
        found.root(),
        layout.rules().numLayers(config),
        tensors.files().stream()
            .map(f ->
                new CheckpointDescription.File(
                    String.valueOf(f.path().getFileName()), f.fileSize(), f.tensors().size()))
            .toList(),
        tensors.bytes(),
        tensors.tensors().size(),
        found.blocks().entrySet().stream().map(layer).toList(),
        notes());
  }

  /** Unmaps the files. Weights handed out must not be used any more. */
  @Override
  public void close() {
    if (arena.scope().isAlive()) {
      tensors.files().forEach(SafetensorsFile::release);
      arena.close();
    }
  }
}
