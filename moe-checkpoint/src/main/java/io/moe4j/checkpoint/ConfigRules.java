package io.moe4j.checkpoint;

import com.fasterxml.jackson.databind.JsonNode;
import io.moe4j.api.CheckpointException;
import io.moe4j.api.config.Activation;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.RmsNorm;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.config.RoutingConfig.GroupScore;
import io.moe4j.api.config.RoutingConfig.Scoring;
import io.moe4j.api.config.SharedExpertConfig.Combine;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.OptionalInt;
import java.util.function.Function;
import java.util.stream.Collectors;
import org.jspecify.annotations.Nullable;

/**
 * The {@code config} part of a layout in JSON: what it says about a model's config.json. Immutable.
 */
final class ConfigRules implements CheckpointLayout.Rules {
  /** Everything that may stand in the part, and what it means where it does not. */
  private static final Map<String, Optional<ConfigValue>> VALUES = new LinkedHashMap<>();

  static {
    VALUES.put("hidden_size", key("hidden_size"));
    VALUES.put("intermediate_size", key("moe_intermediate_size", "intermediate_size"));
    VALUES.put("num_experts", key("num_experts", "num_local_experts", "n_routed_experts"));
    VALUES.put("top_k", key("num_experts_per_tok"));
    VALUES.put("num_layers", key("num_hidden_layers"));
    VALUES.put("activation", key(ConfigValue.of("silu"), "hidden_act"));
    VALUES.put("activation_alpha", Optional.empty());
    VALUES.put("activation_limit", Optional.empty());
    VALUES.put("shared_activation_limit", Optional.empty());
    VALUES.put("scoring", Optional.of(ConfigValue.of("softmax")));
    VALUES.put("renormalize", Optional.of(ConfigValue.of(true)));
    VALUES.put("epsilon", Optional.of(ConfigValue.of(0f)));
    VALUES.put("scaling_factor", Optional.of(ConfigValue.of(1f)));
    VALUES.put("num_groups", Optional.of(ConfigValue.of(1)));
    VALUES.put("topk_groups", Optional.of(ConfigValue.of(1)));
    VALUES.put("group_score", Optional.of(ConfigValue.of("max")));
    VALUES.put("correction_bias", Optional.of(ConfigValue.of(false)));
    VALUES.put("jitter", Optional.of(ConfigValue.of(0f)));
    VALUES.put("router_weight_on_input", Optional.of(ConfigValue.of(false)));
    VALUES.put("latent_size", Optional.of(ConfigValue.of(0)));
    VALUES.put("sum_floor", Optional.of(ConfigValue.of(0f)));
    VALUES.put("zero_experts", Optional.of(ConfigValue.of(0)));
    VALUES.put("norm_epsilon", key(ConfigValue.of(1e-6f), "rms_norm_eps"));
    VALUES.put("shared_combine", Optional.of(ConfigValue.of("add")));
    VALUES.put("shared_intermediate_size", Optional.empty());
    VALUES.put("num_shared_experts", Optional.empty());
    VALUES.put("shared_bias", Optional.of(ConfigValue.of(false)));
    VALUES.put("router_bias", Optional.of(ConfigValue.of(true)));
  }

  private final boolean gated;
  private final boolean hasRouterNorm;
  private final boolean hasExpertScale;
  private final boolean hasInputNorm;
  private final Map<String, ConfigValue> values;
  private final MoeLayers moeLayers;
  private final List<String> layerLists;
  private final Map<String, List<String>> accepted;

  private ConfigRules(
      boolean gated,
      CheckpointLayout.Builder names,
      Map<String, ConfigValue> values,
      MoeLayers moeLayers,
      List<String> layerLists,
      Map<String, List<String>> accepted) {
    this.gated = gated;
    this.hasRouterNorm = names.hasRouterNorm();
    this.hasExpertScale = names.hasExpertScale();
    this.hasInputNorm = names.hasInputNorm();
    this.values = values;
    this.moeLayers = moeLayers;
    this.layerLists = layerLists;
    this.accepted = accepted;
  }

  private static Optional<ConfigValue> key(String... names) {
    return Optional.of(new ConfigValue(null, List.of(names), -1, null, Map.of()));
  }

  private static Optional<ConfigValue> key(ConfigValue orElse, String... names) {
    return Optional.of(new ConfigValue(null, List.of(names), -1, orElse, Map.of()));
  }

  /**
   * Reads the part.
   *
   * @param json the {@code config} object
   * @param gated whether the experts have a gate
   * @param names the layout's other parts: tensors that it names are there
   */
  static ConfigRules parse(LayoutJson.Part json, boolean gated, CheckpointLayout.Builder names) {
    Map<String, ConfigValue> values = new LinkedHashMap<>();
    VALUES.forEach((name, otherwise) ->
        json.optional(name)
            .map(ConfigValue::parse)
            .or(() -> otherwise)
            .ifPresent(v -> values.put(name, v)));
    json.requireKeys(
        java.util.stream.Stream.concat(
                VALUES.keySet().stream(),
                java.util.stream.Stream.of("moe_layers", "layer_lists", "accepts"))
            .toArray(String[]::new));
    Map<String, List<String>> accepted = new LinkedHashMap<>();
    json.optional("accepts")
        .ifPresent(a -> a.forEach((key, texts) -> accepted.put(key, texts.texts())));
    return new ConfigRules(
        gated,
        names,
        values,
        json.optional("moe_layers").map(MoeLayers::parse).orElse(MoeLayers.ALL),
        json.texts("layer_lists"),
        accepted);
  }

  @Override
  public MoeConfig.Builder block(ModelConfig config, int layer) {
    accepted.forEach((key, texts) ->
        config
            .first(List.of(key))
            .filter(e -> !texts.contains(e.getValue().asText()))
            .ifPresent(e -> {
              throw config.unusable(
                  key,
                  String.join(" or ", texts)
                      + ": implementations of this family differ on what else it means, or it is"
                      + " not computed here; a layout of your own ("
                      + MoeCheckpoint.LAYOUT_FILE
                      + ", --layout) can say it");
            }));
    Reader read = new Reader(config, layer);
    MoeConfig.Builder builder =
        MoeConfig.builder(
            read.intValue("hidden_size", 1),
            read.intValue("intermediate_size", 1),
            read.intValue("num_experts", 1),
            read.intValue("top_k", 1));
    int groups = read.intValue("num_groups", 1);
    return builder
        .activation(activation(read, "activation_limit"))
        .routing(
            RoutingConfig.builder(read.oneOf("scoring", Scoring.values()))
                .renormalize(read.get("renormalize", ConfigValue.Found::booleanValue))
                .epsilon(read.get("epsilon", ConfigValue.Found::floatValue))
                .sumFloor(read.get("sum_floor", ConfigValue.Found::floatValue))
                .scalingFactor(read.get("scaling_factor", ConfigValue.Found::floatValue))
                .groups(
                    groups,
                    groups == 1 ? 1 : read.intValue("topk_groups", 1),
                    read.oneOf("group_score", GroupScore.values()))
                .correctionBias(read.get("correction_bias", ConfigValue.Found::booleanValue))
                .jitter(read.get("jitter", ConfigValue.Found::floatValue))
                .expertScale(hasExpertScale)
                .inputNorm(read.norm(hasRouterNorm))
                .build())
        .zeroExperts(read.intValue("zero_experts", 0))
        .inputNorm(read.norm(hasInputNorm))
        .routerWeightOnInput(read.get("router_weight_on_input", ConfigValue.Found::booleanValue))
        .latentSize(read.intValue("latent_size", 0));
  }

  @Override
  public Activation sharedActivation(ModelConfig config, int layer, Activation experts) {
    return values.containsKey("shared_activation_limit")
        ? activation(new Reader(config, layer), "shared_activation_limit")
        : experts;
  }

  /** Several shared experts are one of so many times the width. */
  @Override
  public OptionalInt sharedExpertSize(ModelConfig config, int layer) {
    Reader read = new Reader(config, layer);
    Optional<ConfigValue.Found> count = read.find("num_shared_experts");
    Optional<ConfigValue.Found> width = read.find("shared_intermediate_size");
    if (count.isEmpty()) {
      return width.isPresent() ? OptionalInt.of(width.get().intValue(0)) : OptionalInt.empty();
    }
    int n = count.get().intValue(0);
    long size =
        n == 0 ? 0 : (long) n * width.orElseGet(() -> read.found("intermediate_size")).intValue(0);
    if (size > Integer.MAX_VALUE) {
      throw count.get().unusable("a number that leaves the width below 2^31");
    }
    return OptionalInt.of((int) size);
  }

  @Override
  public boolean hasSharedExpertBias(ModelConfig config, int layer) {
    return new Reader(config, layer).get("shared_bias", ConfigValue.Found::booleanValue);
  }

  @Override
  public boolean hasRouterBias(ModelConfig config, int layer) {
    return new Reader(config, layer).get("router_bias", ConfigValue.Found::booleanValue);
  }

  @Override
  public Combine sharedCombine(ModelConfig config, int layer) {
    return new Reader(config, layer).oneOf("shared_combine", Combine.values());
  }

  private Activation activation(Reader read, String limitName) {
    float limit = read.find(limitName).map(ConfigValue.Found::floatValue).orElse(0f);
    if (limit < 0) {
      throw read.find(limitName).orElseThrow().unusable("not negative; 0 is no clamp");
    }
    ConfigValue.Found name = read.found("activation");
    return switch (name.text()) {
      case "swigluoai" -> {
        Activation plain = Activation.SWIGLUOAI;
        float alpha =
            read.find("activation_alpha").map(ConfigValue.Found::floatValue).orElse(plain.alpha());
        yield new Activation(plain.kind(), alpha, plain.beta(), limit == 0 ? plain.limit() : limit);
      }
      case "swiglu_step" ->
          limit == 0 ? Activation.SILU : new Activation(Activation.Kind.SWIGLU_STEP, 1f, 0f, limit);
      default -> {
        Activation plain =
            ActivationNames.named(name.text(), gated)
                .orElseThrow(() ->
                    name.unusable(ActivationNames.accepted(gated) + ", swigluoai, swiglu_step"));
        if (limit != 0 && plain.kind() != Activation.Kind.SILU) {
          throw read.find(limitName)
              .orElseThrow()
              .unusable("0, no clamp, where the activation is '" + name.text() + "'");
        }
        yield limit == 0 ? plain : plain.withLimit(limit);
      }
    };
  }

  @Override
  public boolean isMoeLayer(ModelConfig config, int layer) {
    return moeLayers.isMoe(config, layer);
  }

  @Override
  public int numLayers(ModelConfig config) {
    ConfigValue value = values.get("num_layers");
    if (value == null) {
      throw new IllegalStateException("num_layers has a default");
    }
    Optional<Map.Entry<String, JsonNode>> list = config.first(layerLists);
    if (list.isPresent()) {
      JsonNode entries = list.get().getValue();
      int layers = entries.isTextual() ? entries.textValue().length() : entries.size();
      if (layers < 1 || !(entries.isTextual() || entries.isArray())) {
        throw config.bad(list.get().getKey(), entries, "a list or text with an entry a layer");
      }
      return layers;
    }
    return value.get("num_layers", config, 0).intValue(1);
  }

  /** The values for one layer. */
  private final class Reader {
    private final ModelConfig config;
    private final int layer;

    Reader(ModelConfig config, int layer) {
      this.config = config;
      this.layer = layer;
    }

    Optional<ConfigValue.Found> find(String name) {
      return Optional.ofNullable(values.get(name)).flatMap(v -> v.find(name, config, layer));
    }

    ConfigValue.Found found(String name) {
      ConfigValue value = values.get(name);
      if (value == null) {
        throw new CheckpointException("the layout's config part lacks '" + name + "'");
      }
      return value.get(name, config, layer);
    }

    <T> T get(String name, Function<ConfigValue.Found, T> type) {
      return type.apply(found(name));
    }

    @Nullable RmsNorm norm(boolean present) {
      return present ? new RmsNorm(get("norm_epsilon", ConfigValue.Found::floatValue)) : null;
    }

    int intValue(String name, int smallest) {
      return found(name).intValue(smallest);
    }

    <E extends Enum<E>> E oneOf(String name, E[] constants) {
      ConfigValue.Found found = found(name);
      String text = found.text();
      for (E e : constants) {
        if (e.name().toLowerCase(Locale.ROOT).equals(text)) {
          return e;
        }
      }
      throw found.unusable(
          Arrays.stream(constants)
              .map(e -> e.name().toLowerCase(Locale.ROOT))
              .collect(Collectors.joining(", ", "one of ", "")));
    }
  }
}
