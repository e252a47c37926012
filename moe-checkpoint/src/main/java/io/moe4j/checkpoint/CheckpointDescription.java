package io.moe4j.checkpoint;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.config.RoutingConfig.GroupScore;
import io.moe4j.api.tensor.DType;
import java.nio.file.Path;
import java.util.List;

/**
 * A readable summary of a checkpoint.
 *
 * @param directory where it is
 * @param modelType the language model's {@code model_type}
 * @param root what precedes the layers in tensor names
 * @param numLayers decoder layers, MoE or not
 * @param files the safetensors files
 * @param bytes their lengths in sum
 * @param tensors number of tensors in all files
 * @param layers the MoE layers
 * @param notes remarks on what was left out
 */
public record CheckpointDescription(
    Path directory,
    String modelType,
    String root,
    int numLayers,
    List<File> files,
    long bytes,
    int tensors,
    List<Layer> layers,
    List<String> notes) {

  /**
   * One file.
   *
   * @param name its name
   * @param bytes its length
   * @param tensors how many tensors it holds
   */
  public record File(String name, long bytes, int tensors) {}

  /**
   * One MoE layer.
   *
   * @param index layer index
   * @param config its config
   * @param bytes bytes of the block's tensors
   * @param routing the routing rule in words
   * @param activation the activation in words
   * @param weights what its linear maps are stored as; experts first
   */
  public record Layer(
      int index,
      MoeConfig config,
      long bytes,
      String routing,
      String activation,
      List<WeightPart> weights) {
    /** Copies the list. */
    public Layer {
      weights = List.copyOf(weights);
    }

    static Layer of(int index, LayerReader.Block block) {
      MoeConfig config = block.config();
      return new Layer(
          index,
          config,
          block.bytes(),
          routingInWords(config),
          activationInWords(config.activation()),
          block.parts());
    }

    /** {@return whether any of its linear maps is quantised} */
    public boolean isQuantized() {
      return weights.stream().anyMatch(w -> !w.scheme().isNone());
    }
  }

  /**
   * Linear maps of one part of a layer that are stored alike.
   *
   * @param part {@code experts}, {@code shared_expert}, {@code shared_expert_gate}, {@code router}
   *     or {@code latent}
   * @param scheme how they are quantised; {@link QuantScheme#NONE} if they are not
   * @param dtype of the elements or codes in the file
   * @param maps how many there are
   * @param bytes codes, scales, zero points and indices together
   * @param example the name of the first of them, below the block
   * @since 0.2.0
   */
  public record WeightPart(
      String part, QuantScheme scheme, DType dtype, int maps, long bytes, String example) {
    /**
     * Like {@code int4 group 128}, {@code BF16}.
     *
     * @return the scheme or the dtype
     */
    public String format() {
      return scheme.isNone() ? dtype.toString() : scheme.toString();
    }
  }

  /**
   * A routing rule as one line of words.
   *
   * @param config the layer
   * @return like {@code top 8 of 128, softmax over all, weights renormalised}
   */
  public static String routingInWords(MoeConfig config) {
    RoutingConfig r = config.routing();
    StringBuilder s =
        new StringBuilder("top " + config.topK() + " of " + config.numExperts() + " experts, ");
    s.append(
        switch (r.scoring()) {
          case SOFTMAX -> "softmax over all";
          case SOFTMAX_TOPK -> "softmax over the chosen";
          case SIGMOID -> "sigmoid";
          case SQRT_SOFTPLUS -> "square root of softplus";
          case SPARSE_MIXER -> "sparse mixer with jitter " + r.jitter();
        });
    if (config.zeroExperts() > 0) {
      s.append(" with ").append(config.zeroExperts()).append(" zero experts behind them");
    }
    if (r.byTokenId()) {
      s.append(" at the experts that a table has for the token's id");
    }
    s.append(r.inputNorm().isPresent() ? " of the normalised input" : "");
    if (r.correctionBias()) {
      s.append(", correction bias for the choice only");
    }
    if (r.numGroups() > 1) {
      s.append(", best ")
          .append(r.topkGroups())
          .append(" of ")
          .append(r.numGroups())
          .append(" groups by ")
          .append(r.groupScore() == GroupScore.MAX ? "their best" : "the sum of their two best");
    }
    s.append(r.renormalize() ? ", weights renormalised" : "");
    s.append(r.expertScale() ? ", a factor for each expert" : "");
    s.append(r.scalingFactor() == 1f ? "" : ", scaled by " + r.scalingFactor());
    s.append(config.routerWeightOnInput() ? ", weight on the expert's input" : "");
    return s.toString();
  }

  /**
   * An activation as words.
   *
   * @param a the activation
   * @return like {@code silu, clamped at 7.0}
   */
  public static String activationInWords(Activation a) {
    String s = a.kind().name().toLowerCase(java.util.Locale.ROOT);
    return Float.isFinite(a.limit()) ? s + ", clamped at " + a.limit() : s;
  }
}
