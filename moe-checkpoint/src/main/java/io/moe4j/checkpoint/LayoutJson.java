package io.moe4j.checkpoint;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.api.CheckpointException;
import io.moe4j.api.config.GateUpLayout;
import io.moe4j.checkpoint.CheckpointLayout.FusedParameter;
import io.moe4j.checkpoint.ExpertForm.Orientation;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.TreeSet;
import java.util.function.BiConsumer;
import java.util.function.Consumer;
import java.util.function.Function;
import org.jspecify.annotations.Nullable;

/**
 * A {@link CheckpointLayout} as JSON. The known families are written in this form (layouts.json
 * beside this class), and so are users' own; FAMILIES.md describes the keys. Every key is checked:
 * one that is not known is an error.
 */
final class LayoutJson {
  private LayoutJson() {}

  /** A piece of a layout file and where it stands, for messages. */
  record Part(String where, JsonNode node) {
    CheckpointException bad(String accepted) {
      String text =
          node.isContainerNode() ? "a JSON " + node.getNodeType() : "'" + node.asText() + "'";
      return new CheckpointException(
          where + " is " + StrictJson.shorten(text) + ", must be " + accepted);
    }

    void requireKeys(String... accepted) {
      if (!node.isObject()) {
        throw bad("a JSON object with " + String.join(", ", accepted));
      }
      TreeSet<String> unknown = new TreeSet<>();
      node.fieldNames().forEachRemaining(unknown::add);
      List.of(accepted).forEach(unknown::remove);
      if (!unknown.isEmpty()) {
        throw new CheckpointException(
            where
                + " has unknown keys "
                + StrictJson.shorten(unknown.toString())
                + "; accepted are "
                + String.join(", ", accepted));
      }
    }

    Optional<Part> optional(String key) {
      return node.hasNonNull(key)
          ? Optional.of(new Part(where + "." + key, node.get(key)))
          : Optional.empty();
    }

    Part required(String key) {
      return optional(key)
          .orElseThrow(() -> new CheckpointException(where + " lacks '" + key + "'"));
    }

    String text() {
      if (!node.isTextual() || node.textValue().isEmpty()) {
        throw bad("a string that is not empty");
      }
      return node.textValue();
    }

    /** A string, or a list of strings. */
    List<String> texts() {
      if (!node.isArray()) {
        return List.of(text());
      }
      return elements().stream().map(Part::text).toList();
    }

    List<String> texts(String key) {
      return optional(key).map(Part::texts).orElse(List.of());
    }

    int intValue(int smallest) {
      if (!node.isInt() || node.intValue() < smallest) {
        throw bad("an integer from " + smallest);
      }
      return node.intValue();
    }

    boolean flag(String key) {
      return optional(key)
          .map(p -> {
            if (!p.node.isBoolean()) {
              throw p.bad("true or false");
            }
            return p.node.booleanValue();
          })
          .orElse(false);
    }

    <E extends Enum<E>> E oneOf(String key, E[] constants, @Nullable E otherwise) {
      Optional<Part> part = optional(key);
      if (part.isEmpty() && otherwise != null) {
        return otherwise;
      }
      String text = required(key).text();
      return Arrays.stream(constants)
          .filter(e -> e.name().toLowerCase(Locale.ROOT).equals(text))
          .findFirst()
          .orElseThrow(() ->
              required(key).bad("one of " + Arrays.toString(constants).toLowerCase(Locale.ROOT)));
    }

    List<Part> elements() {
      if (!node.isArray()) {
        throw bad("a list");
      }
      List<Part> parts = new ArrayList<>();
      for (JsonNode n : node) {
        parts.add(new Part(where + "[" + parts.size() + "]", n));
      }
      return parts;
    }

    void forEach(BiConsumer<String, Part> consumer) {
      if (!node.isObject()) {
        throw bad("a JSON object");
      }
      node.properties()
          .forEach(
              e -> consumer.accept(e.getKey(), new Part(where + "." + e.getKey(), e.getValue())));
    }
  }

  /**
   * A file of one layout, or of several under {@code layouts}.
   *
   * @param source for messages
   * @param json the file
   * @param known the JSON of layouts that may be extended, by model_type; those read are added
   * @return the layouts, by model_type
   */
  static Map<String, CheckpointLayout> read(
      String source, ObjectNode json, Map<String, ObjectNode> known) {
    Part file = new Part(source, json);
    List<Part> parts = List.of(file);
    if (json.has("layouts")) {
      file.requireKeys("layouts");
      parts = file.required("layouts").elements();
    }
    Map<String, CheckpointLayout> layouts = new LinkedHashMap<>();
    for (Part part : parts) {
      for (String type : part.required("model_type").texts()) {
        ObjectNode whole = extended(part, known);
        whole.put("model_type", type);
        CheckpointLayout layout = layout(new Part(part.where() + " (" + type + ")", whole));
        known.put(type, whole);
        layouts.put(type, layout);
      }
    }
    return layouts;
  }

  /** What a layout says itself counts; of the one it extends, what it does not say. */
  private static ObjectNode extended(Part part, Map<String, ObjectNode> known) {
    ObjectNode own = part.node().deepCopy();
    Optional<Part> base = part.optional("extends");
    own.remove("extends");
    if (base.isEmpty()) {
      return own;
    }
    ObjectNode found = known.get(base.get().text());
    if (found == null) {
      throw base.get()
          .bad("a known model_type: " + String.join(", ", new TreeSet<>(known.keySet())));
    }
    ObjectNode whole = found.deepCopy();
    merge(whole, own);
    return whole;
  }

  /** A value's object stands for itself; the parts router and config are put together by key. */
  private static void merge(ObjectNode whole, ObjectNode own) {
    own.properties()
        .forEach(e -> {
          if (List.of("router", "config").contains(e.getKey())
              && whole.get(e.getKey()) instanceof ObjectNode there
              && e.getValue() instanceof ObjectNode here) {
            there.setAll(here);
          } else {
            whole.set(e.getKey(), e.getValue());
          }
        });
  }

  private static CheckpointLayout layout(Part json) {
    json.requireKeys(
        "model_type",
        "config_at",
        "blocks",
        "beside",
        "outside",
        "experts",
        "router",
        "shared_expert",
        "shared_expert_gate",
        "latent",
        "input_norm",
        "output_bias",
        "ignored",
        "more_experts_ignored",
        "adapter_parameters",
        "config");
    CheckpointLayout.Builder b = CheckpointLayout.builder(json.required("model_type").text());
    templates(json, "blocks", t -> b.block(t));
    templates(json, "beside", t -> b.beside(t));
    templates(json, "outside", t -> b.outside(t));
    json.texts("config_at").forEach(b::configAt);
    List<Boolean> gates =
        json.required("experts").elements().stream().map(f -> form(f, b)).toList();
    boolean gated = gates.contains(true);
    if (gates.contains(!gated)) {
      throw json.required("experts").bad("forms that all have a gate, or that all have none");
    }
    json.optional("router").ifPresent(r -> router(r, b));
    json.optional("shared_expert").ifPresent(s -> shared(s, b));
    json.optional("shared_expert_gate").ifPresent(g -> b.sharedExpertGate(g.text()));
    json.optional("latent")
        .ifPresent(l -> {
          l.requireKeys("in", "out");
          b.latent(l.required("in").text(), l.required("out").text());
        });
    json.optional("input_norm").ifPresent(n -> b.inputNorm(n.text()));
    json.optional("output_bias").ifPresent(n -> b.outputBias(n.text()));
    json.texts("ignored").forEach(b::ignored);
    b.moreExpertsIgnored(json.flag("more_experts_ignored"));
    json.optional("adapter_parameters")
        .map(Part::elements)
        .map(list -> list.stream().map(LayoutJson::parameter).toList())
        .orElseGet(() -> parameters(b.forms(), gated))
        .forEach(b::fusedParameter);
    b.rules(ConfigRules.parse(new Part(json.where() + ".config", config(json)), gated, b));
    return checked(json, x -> b.build());
  }

  private static JsonNode config(Part json) {
    return json.optional("config").map(Part::node).orElseGet(() -> StrictJson.emptyObject());
  }

  private static void templates(Part json, String key, Consumer<String> add) {
    json.optional(key)
        .ifPresent(part ->
            part.texts()
                .forEach(t ->
                    checked(
                        part,
                        x -> {
                          add.accept(t);
                          return x;
                        })));
  }

  /** What a layout's own classes refuse becomes an error with the place. */
  private static <T> T checked(Part part, Function<Part, T> make) {
    try {
      return make.apply(part);
    } catch (IllegalArgumentException | IllegalStateException e) {
      throw new CheckpointException(part.where() + ": " + e.getMessage(), e);
    }
  }

  /** {@return whether the experts have a gate} */
  private static boolean form(Part form, CheckpointLayout.Builder b) {
    form.requireKeys(
        "gate", "up", "down", "gate_up", "gate_up_bias", "down_bias", "stored", "order", "format");
    String down = form.required("down").text();
    Optional<String> gateUp = form.optional("gate_up").map(Part::text);
    Optional<String> gate = form.optional("gate").map(Part::text);
    checked(
        form,
        f -> {
          if (down.contains(ExpertForm.PerExpert.EXPERT)) {
            String up = f.required("up").text();
            return gate.isPresent() ? b.perExpert(gate.get(), up, down) : b.perExpert(up, down);
          }
          if (gate.isPresent()) {
            return b.form(new ExpertForm.StackedApart(gate.get(), f.required("up").text(), down));
          }
          String w13 = gateUp.orElseGet(() -> f.required("up").text());
          Optional<String> b13 = f.optional("gate_up_bias").map(Part::text);
          Optional<String> b2 = f.optional("down_bias").map(Part::text);
          GateUpLayout order = f.oneOf("order", GateUpLayout.values(), GateUpLayout.HALVES);
          if (f.optional("format").isPresent()) {
            if (!f.required("format").text().equals("mxfp4")) {
              throw f.required("format").bad("mxfp4");
            }
            return b.form(new ExpertForm.Mxfp4Stacked(w13, down, b13, b2, order));
          }
          Orientation stored = f.oneOf("stored", Orientation.values(), Orientation.OUT_IN);
          return b.form(new ExpertForm.Stacked(w13, down, b13, b2, stored, order));
        });
    return gate.isPresent() || gateUp.isPresent();
  }

  private static void router(Part json, CheckpointLayout.Builder b) {
    json.requireKeys(
        "weight",
        "bias",
        "correction_bias",
        "stored",
        "correction_bias_row",
        "norm",
        "norm_over_root",
        "expert_scale",
        "token_experts",
        "adapters");
    json.optional("adapters").ifPresent(a -> b.routerAdapters(json.flag("adapters")));
    json.optional("norm").ifPresent(n -> b.routerNorm(n.text(), json.flag("norm_over_root")));
    json.optional("expert_scale").ifPresent(s -> b.expertScale(s.text()));
    b.tokenExperts(json.texts("token_experts").toArray(String[]::new));
    b.router(json.texts("weight").toArray(String[]::new));
    json.texts("bias").forEach(b::routerBias);
    json.texts("correction_bias").forEach(b::correctionBias);
    b.routerStored(json.oneOf("stored", Orientation.values(), Orientation.OUT_IN));
    json.optional("correction_bias_row").ifPresent(r -> b.correctionBiasRow(r.intValue(0)));
  }

  private static void shared(Part json, CheckpointLayout.Builder b) {
    List<Part> forms = json.node().isArray() ? json.elements() : List.of(json);
    for (Part form : forms) {
      if (form.node().isTextual()) {
        b.sharedExpert(form.text());
      } else {
        form.requireKeys("gate", "up", "gate_up", "down");
        Optional<String> fused = form.optional("gate_up").map(Part::text);
        Optional<String> gate = form.optional("gate").map(Part::text);
        checked(
            form,
            f ->
                b.sharedExpert(
                    new SharedForm(
                        gate,
                        fused.orElseGet(() -> f.required("up").text()),
                        f.required("down").text(),
                        fused.isPresent())));
      }
    }
  }

  private static FusedParameter parameter(Part json) {
    json.requireKeys("name", "kind", "stored", "is_transposed");
    return new FusedParameter(
        json.required("name").text(),
        json.oneOf("kind", FusedParameter.Kind.values(), null),
        json.oneOf("stored", Orientation.values(), Orientation.OUT_IN),
        json.flag("is_transposed"));
  }

  /** What the modelling code of nearly every family keeps for all experts together. */
  private static List<FusedParameter> parameters(List<ExpertForm> forms, boolean gated) {
    for (ExpertForm form : forms) {
      if (form instanceof ExpertForm.Stacked s && s.w13().startsWith("experts.")) {
        Orientation stored =
            s.orientation() == Orientation.BY_SHAPE ? Orientation.OUT_IN : s.orientation();
        FusedParameter.Kind kind = gated ? FusedParameter.Kind.GATE_UP : FusedParameter.Kind.UP;
        return List.of(
            new FusedParameter(s.w13().substring("experts.".length()), kind, stored, false),
            new FusedParameter(
                s.w2().substring("experts.".length()), FusedParameter.Kind.DOWN, stored, false));
      }
    }
    return List.of();
  }

  /**
   * A layout to fill in.
   *
   * @param modelType what config.json says, or empty
   * @return JSON on several lines
   */
  static String template(String modelType) {
    return """
    {
      "model_type": "%s",
      "extends": "qwen3_moe",
      "blocks": ["layers.{L}.mlp"],
      "experts": [
        {"gate": "experts.{E}.gate_proj", "up": "experts.{E}.up_proj", "down": "experts.{E}.down_proj"}
      ],
      "router": {"weight": "gate.weight"},
      "config": {
        "intermediate_size": {"key": "moe_intermediate_size"},
        "num_experts": {"key": "num_experts"},
        "top_k": {"key": "num_experts_per_tok"},
        "scoring": "softmax",
        "renormalize": {"key": "norm_topk_prob", "default": true},
        "moe_layers": {"first": 0}
      }
    }\
    """
        .formatted(
            modelType.isEmpty()
                ? "as in config.json"
                : modelType.replace("\"", "'").replace("\\", "/"))
        .strip();
  }
}
