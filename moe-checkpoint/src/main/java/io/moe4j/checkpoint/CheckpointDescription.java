package io.moe4j.checkpoint;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.config.RoutingConfig.GroupScore;
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
   */
  public record Layer(int index, MoeConfig config, long bytes, String routing, String activation) {
    static Layer of(int index, MoeConfig config, long bytes) {
      return new Layer(
          index, config, bytes, routingInWords(config), activationInWords(config.activation()));
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
    s.append(r.scalingFactor() == 1f ? "" : ", scaled by " + r.scalingFactor());
    s.append(config.routerWeightOnInput() ? ", weight on the expert's input" : "");
    return s.toString();
  }

  private static String activationInWords(Activation a) {
    String s = a.kind().name().toLowerCase(java.util.Locale.ROOT);
    return Float.isFinite(a.limit()) ? s + ", clamped at " + a.limit() : s;
  }
}
