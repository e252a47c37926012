package io.moe4j.tck;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.ActivationQuant;
import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.tensor.DType;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.IntBinaryOperator;
import java.util.function.UnaryOperator;
import java.util.stream.Stream;

/** The cases, as values. Every list is crossed with the dtypes that backends commonly take. */
final class Grid {
  /**
   * One run.
   *
   * @param name for the report
   * @param config STANDARD; the kit sets the backend's own format
   * @param layout of the weights
   * @param tokens {@code T}
   * @param preference added to logits {@code (token, expert)}
   * @param output dtype
   */
  record Case(
      String name,
      MoeConfig config,
      Layout layout,
      int tokens,
      IntBinaryOperator preference,
      DType output) {
    @Override
    public String toString() {
      return name + ", " + Problem.describe(config);
    }
  }

  /**
   * Dtypes that go together.
   *
   * @param hidden of hidden states
   * @param weights of the experts
   */
  record Dtypes(DType hidden, DType weights) {}

  static final List<Dtypes> DTYPES =
      List.of(
          new Dtypes(DType.F32, DType.F32),
          new Dtypes(DType.F32, DType.BF16),
          new Dtypes(DType.BF16, DType.BF16),
          new Dtypes(DType.F16, DType.F16));

  private Grid() {}

  /** No preference of a token for an expert. */
  private static int any(int token, int expert) {
    return 0;
  }

  /** Sigmoid scores: chosen weights differ and do not sum to 1. */
  static MoeConfig.Builder layer(Dtypes dtypes, int h, int i, int e, int k) {
    return MoeConfig.builder(h, i, e, k)
        .inputDtype(dtypes.hidden())
        .weightDtype(dtypes.weights())
        .routing(RoutingConfig.SIGMOID)
        .maxTokens(1024);
  }

  /** The layer that tests vary. */
  static MoeConfig.Builder layer(Dtypes dtypes) {
    return layer(dtypes, 48, 40, 8, 2);
  }

  private static Case plain(MoeConfig config, String name, int tokens) {
    return new Case(name, config, Layout.STACKED, tokens, Grid::any, DType.F32);
  }

  static Stream<Case> shapes() {
    List<Case> cases = new ArrayList<>();
    for (Dtypes d : DTYPES) {
      cases.add(plain(layer(d).build(), "one token", 1));
      cases.add(plain(layer(d, 1, 1, 1, 1).build(), "everything 1, one token", 1));
      cases.add(plain(layer(d, 1, 1, 1, 1).build(), "everything 1", 5));
      cases.add(plain(layer(d, 33, 17, 5, 3).build(), "odd sizes", 7));
      cases.add(plain(layer(d, 127, 65, 3, 2).build(), "one off powers of two", 9));
      cases.add(plain(layer(d, 31, 129, 4, 1).build(), "I over H, top 1", 33));
      cases.add(plain(layer(d, 7, 3, 60, 4).build(), "60 experts, tiny", 13));
      cases.add(plain(layer(d, 40, 24, 6, 6).build(), "all experts chosen", 11));
      cases.add(plain(layer(d, 40, 24, 1, 1).build(), "one expert", 17));
      cases.add(plain(layer(d, 24, 16, 128, 8).build(), "128 experts, one token", 1));
      cases.add(plain(layer(d, 24, 16, 257, 8).build(), "257 experts", 3));
      cases.add(plain(layer(d, 64, 48, 4, 2).build(), "600 tokens", 600));
      cases.add(plain(layer(d, 272, 208, 3, 2).build(), "several tiles", 130));
      cases.add(plain(layer(d, 1056, 264, 2, 2).build(), "wide, few tokens", 3));
      cases.add(
          new Case(
              "experts without tokens",
              layer(d, 48, 40, 32, 2).build(),
              Layout.STACKED,
              9,
              (t, e) -> e == 5 || e == 30 ? 9 : 0,
              DType.F32));
      cases.add(
          new Case(
              "all tokens on one expert",
              layer(d, 48, 40, 8, 1).build(),
              Layout.STACKED,
              130,
              (t, e) -> e == 6 ? 9 : 0,
              DType.F32));
      cases.add(
          new Case(
              "one expert for all, the other varies",
              layer(d).build(),
              Layout.STACKED,
              67,
              (t, e) -> e == 0 ? 5 : 0,
              DType.F32));
    }
    return cases.stream();
  }

  static Stream<Case> dtypes() {
    List<DType> all = List.of(DType.F32, DType.BF16, DType.F16);
    List<Case> cases = new ArrayList<>();
    for (DType hidden : all) {
      for (DType weights : all) {
        MoeConfig config = layer(new Dtypes(hidden, weights)).build();
        for (DType output : all) {
          if (output == DType.F32 || output == hidden) {
            cases.add(new Case("output " + output, config, Layout.STACKED, 19, Grid::any, output));
          }
        }
      }
    }
    return cases.stream();
  }

  static List<Activation> activations() {
    List<Activation> all = new ArrayList<>();
    for (Activation.Kind kind : Activation.Kind.values()) {
      all.add(Activation.plain(kind));
    }
    all.add(Activation.SILU.withLimit(1.5f));
    all.add(Activation.plain(Activation.Kind.SWIGLU_STEP).withLimit(1.5f));
    all.add(new Activation(Activation.Kind.SWIGLUOAI, 1f, 0f, 2f));
    all.add(new Activation(Activation.Kind.SWIGLUOAI, 1.702f, 1f, 1.5f));
    return all;
  }

  static Stream<Case> activationCases() {
    List<Case> cases = new ArrayList<>();
    for (Dtypes d : DTYPES) {
      for (Activation a : activations()) {
        cases.add(plain(layer(d, 33, 29, 5, 2).activation(a).build(), "activation", 21));
      }
    }
    return cases.stream();
  }

  static Stream<Case> layouts() {
    List<Case> cases = new ArrayList<>();
    for (Dtypes d : DTYPES) {
      for (Layout layout : Layout.values()) {
        for (boolean bias : new boolean[] {false, true}) {
          cases.add(
              new Case(
                  "weights " + layout,
                  layer(d, 35, 27, 5, 2).expertBias(bias).build(),
                  layout,
                  11,
                  Grid::any,
                  DType.F32));
        }
      }
      cases.add(
          new Case(
              "weights " + Layout.TRANSPOSED,
              layer(d).activation(Activation.RELU2_NO_MUL).expertBias(true).build(),
              Layout.TRANSPOSED,
              11,
              Grid::any,
              DType.F32));
    }
    return cases.stream();
  }

  /** MXFP4 weights; what they dequantise to is BF16, the input may be any float. */
  static Stream<Case> quantised() {
    List<Case> cases = new ArrayList<>();
    for (DType hidden : List.of(DType.F32, DType.BF16)) {
      for (Layout layout : List.of(Layout.STACKED, Layout.INTERLEAVED)) {
        for (int tokens : new int[] {1, 5, 67}) {
          MoeConfig config =
              layer(new Dtypes(hidden, DType.BF16), 64, 96, 5, 2)
                  .quantScheme(QuantScheme.MXFP4)
                  .activation(layout == Layout.STACKED ? Activation.SILU : Activation.SWIGLUOAI)
                  .expertBias(layout != Layout.STACKED)
                  .build();
          cases.add(new Case("mxfp4", config, layout, tokens, Grid::any, DType.F32));
        }
      }
    }
    return cases.stream();
  }

  /** Bias, map and weight-on-input in all combinations. */
  static Stream<Case> features() {
    List<Case> cases = new ArrayList<>();
    for (Dtypes d : DTYPES) {
      for (int bits = 1; bits < 8; bits++) {
        boolean bias = (bits & 1) != 0;
        boolean onInput = (bits & 2) != 0;
        MoeConfig.Builder b = layer(d).expertBias(bias).routerWeightOnInput(onInput);
        if ((bits & 4) != 0) {
          b.parallel(ParallelConfig.expert(2, 0))
              .expertMap(ExpertMap.of(-1, 2, -1, 0, 1, -1, 3, -1));
        }
        cases.add(plain(b.build(), "features", 23));
      }
      cases.add(
          plain(
              layer(d, 48, 40, 6, 1).routerWeightOnInput(true).build(),
              "weight on input, top 1",
              9));
      cases.add(
          plain(
              layer(d, 48, 40, 6, 2).activation(Activation.SWIGLUOAI).expertBias(true).build(),
              "gpt-oss like",
              9));
      cases.add(
          plain(
              layer(d, 48, 40, 6, 2).latentSize(20).activation(Activation.RELU2_NO_MUL).build(),
              "latent experts",
              9));
      cases.add(
          plain(
              layer(d, 48, 40, 9, 3).parallel(ParallelConfig.expert(4, 1)).build(),
              "expert-parallel rank 1 of 4",
              9));
    }
    return cases.stream();
  }

  static Stream<Dtypes> dtypePairs() {
    return DTYPES.stream();
  }

  /** Every config that is computed somewhere above. */
  static List<MoeConfig> computed() {
    return Stream.of(shapes(), dtypes(), activationCases(), layouts(), quantised(), features())
        .flatMap(s -> s)
        .map(Case::config)
        .distinct()
        .toList();
  }

  /** Changes to a config that some backend somewhere refuses; each touches another component. */
  static Map<String, UnaryOperator<MoeConfig.Builder>> questions() {
    Map<String, UnaryOperator<MoeConfig.Builder>> q = new LinkedHashMap<>();
    q.put("input f32", b -> b.inputDtype(DType.F32));
    q.put("input bf16", b -> b.inputDtype(DType.BF16));
    q.put("input f16", b -> b.inputDtype(DType.F16));
    q.put("weights f32", b -> b.weightDtype(DType.F32));
    q.put("weights bf16", b -> b.weightDtype(DType.BF16));
    q.put("weights f16", b -> b.weightDtype(DType.F16));
    q.put("mxfp4", b -> b.quantScheme(QuantScheme.MXFP4));
    q.put("int4", b -> b.quantScheme(QuantScheme.int4(128)));
    q.put(
        "unheard-of scheme",
        b -> b.quantScheme(QuantScheme.builder(QuantScheme.Format.INT8).block(3, 7).build()));
    for (Activation a : activations()) {
      q.put(a.toString(), b -> b.activation(a));
    }
    q.put("bias", b -> b.expertBias(true));
    q.put("weight on input", b -> b.routerWeightOnInput(true));
    q.put("map", b -> b.parallel(ParallelConfig.expert(2, 1)));
    q.put("tensor parallel", b -> b.parallel(ParallelConfig.tensor(4, 1)));
    q.put("expert parallel", b -> b.parallel(ParallelConfig.expert(2, 1)));
    q.put(
        "some experts plain",
        b -> b.quantSchemes(List.of(QuantScheme.int4(128), QuantScheme.NONE)));
    q.put(
        "quantised activations",
        b ->
            b.quantScheme(
                    QuantScheme.builder(QuantScheme.Format.INT8)
                        .perChannel()
                        .activations(ActivationQuant.INT8_PER_TOKEN)
                        .build())
                .quantizedActivations(true));
    q.put("batch invariant", b -> b.batchInvariant(true));
    q.put("lora", b -> b.lora(new LoraConfig(4, 16)));
    q.put("large lora", b -> b.lora(new LoraConfig(64, 512)));
    q.put("many tokens", b -> b.maxTokens(1 << 20));
    q.put("latent", b -> b.latentSize(24));
    q.put("deepseek routing", b -> b.routing(RoutingConfig.deepseekV3(4, 2, true, 2.5f)));
    q.put("phimoe routing", b -> b.routing(RoutingConfig.sparseMixer(0.01f)));
    return q;
  }
}
