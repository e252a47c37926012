package io.moe4j.checkpoint;

import io.moe4j.api.AdapterException;
import io.moe4j.api.CheckpointException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/**
 * {@code adapter_config.json} as mlx-lm writes it (and mlx-vlm, and Unsloth on MLX): rank and scale
 * under {@code lora_parameters}. The scale is applied as it is, whatever the rank.
 */
final class MlxConfig {
  private static final String PARAMETERS = "lora_parameters";
  private static final String TYPE = "fine_tune_type";
  private static final String ALPHA = "alpha";
  private static final String WEIGHTS = "adapters.safetensors";

  private MlxConfig() {}

  /** Whether a config is mlx-lm's: some writers put PEFT's keys beside its own. */
  static boolean isMlx(Path directory, ModelConfig config) {
    boolean peft = config.has("lora_alpha");
    boolean mlx = config.has(PARAMETERS) || config.has(TYPE);
    boolean weights = Files.exists(directory.resolve(WEIGHTS));
    if (!peft || !mlx) {
      return !peft && (mlx || (weights && !config.has("r")));
    }
    boolean peftWeights = Files.exists(directory.resolve("adapter_model.safetensors"));
    if (weights && peftWeights) {
      throw new AdapterException(
          config.source()
              + " has keys of PEFT (lora_alpha) and of mlx-lm ("
              + PARAMETERS
              + "), and the weights of both are there, adapter_model.safetensors and "
              + WEIGHTS
              + ": leave one of the two");
    }
    return weights;
  }

  static AdapterConfig read(ModelConfig config) {
    String type = config.optionalString(TYPE).orElse("lora");
    switch (type) {
      case "lora", "dora" -> {}
      case "full" ->
          throw new AdapterException(
              config.source()
                  + ": "
                  + TYPE
                  + " is 'full': "
                  + WEIGHTS
                  + " then holds whole weights and no factors; accepted is lora");
      default ->
          throw new AdapterException(
              config.source()
                  + ": "
                  + TYPE
                  + " is '"
                  + StrictJson.shorten(type)
                  + "', accepted is lora");
    }
    ModelConfig parameters =
        config
            .optionalObject(PARAMETERS)
            .orElseThrow(() ->
                new CheckpointException(
                    config.source()
                        + " lacks '"
                        + PARAMETERS
                        + "' with rank and scale, as mlx-lm writes them; older files of mlx-vlm"
                        + " (rank and alpha; tensors called A and B) are not read"));
    int rank = parameters.requireInt("rank");
    double scale =
        parameters
            .optionalNumber("scale")
            .orElseThrow(() -> new CheckpointException(parameters.source() + " lacks 'scale'"));
    requireOneScale(config, parameters, rank, scale);
    return new AdapterConfig(
        config.optionalString("base_model_name_or_path", "model"),
        Optional.empty(),
        rank,
        scale * rank,
        false,
        Map.of(),
        Map.of(),
        List.of(),
        List.of(),
        List.of(),
        "none",
        FusedLayout.UNSTATED,
        type.equals("dora") || config.optionalBoolean("use_dora", false)
            ? List.of("DoRA")
            : List.of(),
        AdapterConfig.Form.MLX);
  }

  /**
   * mlx-lm multiplied the scale by alpha / rank until June 2024, and wrote alpha for a year after
   * that without using it. Files with {@code num_layers} are newer than September 2024.
   */
  private static void requireOneScale(
      ModelConfig config, ModelConfig parameters, int rank, double scale) {
    Optional<Double> alpha = parameters.optionalNumber(ALPHA);
    if (alpha.isPresent() && alpha.get() != rank && !config.has("num_layers")) {
      throw new AdapterException(
          parameters.source()
              + ": scale is "
              + AdapterScales.text(scale)
              + " and alpha "
              + AdapterScales.text(alpha.get())
              + " at rank "
              + rank
              + ", and mlx-lm used alpha until June 2024 and ignored it after; the file does not"
              + " tell when it was trained. Take alpha out for a later one; for an earlier one, also"
              + " set scale to "
              + AdapterScales.text(scale * alpha.get() / rank));
    }
  }
}
