package io.moe4j.tck;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.ActivationQuant;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.QuantScheme.Format;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.Packing;
import io.moe4j.api.weights.Weight;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;

/** Layers with quantised experts: every scheme in every packing that checkpoints have it in. */
final class QuantCases {
  private static final int EXPERTS = 3;

  /** How each projection of each expert is stored. */
  private interface Plan {
    /**
     * {@return how it is stored; null = plain floats of the config's weight dtype}
     *
     * @param expert local expert
     * @param projection 0 gate, 1 up, 2 down
     */
    @Nullable Quantised of(int expert, int projection);
  }

  /**
   * One run.
   *
   * @param name for the report
   * @param config STANDARD; the kit sets the backend's own format
   * @param plan how projections are stored
   * @param tokens {@code T}
   */
  record QuantCase(String name, MoeConfig config, Plan plan, int tokens) {
    @Override
    public String toString() {
      return name + ", " + Problem.describe(config);
    }

    /** {@return the batch, with adapters where the config has LoRA on} */
    Problem problem(MoeConfig own) {
      Data data = new Data(name.hashCode());
      Problem p = new Problem(own, weights(own, data), tokens, 3);
      if (own.lora().isPresent()) {
        p.adapters(
            LoraCases.MIXED.slots(own, new Data(4), own.weightDtype()), 3, -1, 0, 2, 5, 4, 1);
      }
      return p;
    }

    private ExpertWeights weights(MoeConfig own, Data data) {
      int h = own.expertHiddenSize();
      int i = own.intermediateSize();
      List<ExpertWeights.Expert> experts = new ArrayList<>();
      for (int e = 0; e < own.numLocalExperts(); e++) {
        Weight gate = own.activation().isGated() ? weight(own, data, e, 0, i, h) : null;
        ExpertWeights.Expert expert =
            ExpertWeights.Expert.of(
                gate, weight(own, data, e, 1, i, h), weight(own, data, e, 2, h, i));
        experts.add(own.expertBias() ? biased(expert, own, data) : expert);
      }
      return new ExpertWeights(experts);
    }

    private static ExpertWeights.Expert biased(ExpertWeights.Expert x, MoeConfig own, Data data) {
      DType dtype = own.weightDtype();
      int i = own.intermediateSize();
      Tensor gate = x.gate() == null ? null : data.normal(dtype, 0.7, i);
      return x.withBias(
          gate, data.normal(dtype, 0.7, i), data.normal(dtype, 0.7, own.expertHiddenSize()));
    }

    private Weight weight(MoeConfig own, Data data, int expert, int projection, int out, int in) {
      String what = List.of("gate", "up", "down").get(projection);
      Quantised stored = plan.of(expert, projection);
      return stored == null
          ? Weight.plain(what, data.normal(own.weightDtype(), 1 / Math.sqrt(in), out, in))
          : stored.weight(what, data, out, in);
    }
  }

  private QuantCases() {}

  private static QuantScheme int4(int group) {
    return QuantScheme.int4(group);
  }

  private static QuantScheme int8(int group) {
    return QuantScheme.int8(group);
  }

  private static QuantScheme.Builder fp8() {
    return QuantScheme.builder(Format.FP8);
  }

  /** Everything that one linear map can be. */
  static Map<String, Quantised> stored() {
    Map<String, Quantised> all = new LinkedHashMap<>();
    for (int bits : new int[] {4, 8}) {
      QuantScheme g32 = bits == 4 ? int4(32) : int8(32);
      QuantScheme g128 = bits == 4 ? int4(128) : int8(128);
      QuantScheme channel = bits == 4 ? int4(QuantScheme.ALL) : int8(QuantScheme.ALL);
      Quantised gptq = Quantised.of(g32, Packing.WORDS_ALONG_IN, DType.F16).asTransposed();
      all.put("gptq int" + bits, gptq);
      all.put("gptq v1 int" + bits, gptq.withZeros(Packing.WORDS_ALONG_OUT, 1));
      all.put("gptq v2 int" + bits, gptq.withZeros(Packing.WORDS_ALONG_OUT, 0));
      all.put("gptq act-order int" + bits, gptq.withActOrder());
      all.put(
          "gptq v1 act-order int" + bits,
          gptq.withZeros(Packing.WORDS_ALONG_OUT, 1).withActOrder());
      all.put(
          "gptq v1 group 128 int" + bits,
          Quantised.of(g128, Packing.WORDS_ALONG_IN, DType.F16)
              .asTransposed()
              .withZeros(Packing.WORDS_ALONG_OUT, 1));
      for (QuantScheme s : List.of(g32, g128, channel)) {
        Quantised packed = Quantised.of(s, Packing.WORDS_ALONG_IN, DType.BF16);
        all.put("compressed-tensors " + s, packed);
        all.put("compressed-tensors asymmetric " + s, packed.withZeros(Packing.WORDS_ALONG_OUT, 0));
      }
      all.put(
          "dense zero points int" + bits,
          Quantised.of(g32, Packing.WORDS_ALONG_IN, DType.F32).withZeros(Packing.DENSE, 0));
      all.put(
          "words along outputs int" + bits,
          Quantised.of(g32, Packing.WORDS_ALONG_OUT, DType.F32)
              .withZeros(Packing.WORDS_ALONG_IN, 0));
    }
    for (int group : new int[] {32, 128}) {
      all.put(
          "awq group " + group,
          Quantised.of(int4(group), Packing.WORDS_ALONG_OUT_AWQ, DType.F16)
              .asTransposed()
              .withZeros(Packing.WORDS_ALONG_OUT_AWQ, 0));
    }
    all.put("int8 per channel", dense(int8(QuantScheme.ALL), DType.F32));
    all.put(
        "int8 per channel, activations int8",
        dense(
            QuantScheme.builder(Format.INT8)
                .perChannel()
                .activations(ActivationQuant.INT8_PER_TOKEN)
                .build(),
            DType.BF16));
    all.put("fp8 per tensor", dense(fp8().perTensor().build(), DType.F32));
    all.put(
        "fp8 per tensor, static activations",
        dense(fp8().perTensor().activations(ActivationQuant.FP8_STATIC).build(), DType.F32));
    all.put("fp8 per channel", dense(fp8().perChannel().build(), DType.BF16));
    all.put("fp8 block", dense(QuantScheme.FP8_BLOCK, DType.F32));
    all.put(
        "fp8 block, activations per block",
        dense(
            QuantScheme.FP8_BLOCK.toBuilder().activations(ActivationQuant.FP8_PER_BLOCK).build(),
            DType.F32));
    all.put("mxfp4", dense(QuantScheme.MXFP4, DType.F8_E8M0));
    all.put("mxfp8", dense(QuantScheme.MXFP8, DType.F8_E8M0));
    all.put("nvfp4, global scale multiplied", dense(QuantScheme.NVFP4, DType.F8_E4M3));
    all.put("nvfp4, global scale divided", dense(QuantScheme.NVFP4, DType.F8_E4M3).divided());
    return all;
  }

  private static Quantised dense(QuantScheme scheme, DType scales) {
    return Quantised.of(scheme, Packing.DENSE, scales);
  }

  /** {@code [H, I]}: two groups at least somewhere, and last blocks that are not full. */
  private static int[] size(QuantScheme scheme) {
    if (scheme.scaleRows() > 1) {
      return new int[] {200, 136};
    }
    return scheme.scaleColumns() >= 128 ? new int[] {256, 128} : new int[] {64, 96};
  }

  private static MoeConfig.Builder layer(int[] size, Grid.Dtypes dtypes) {
    return Grid.layer(dtypes, size[0], size[1], EXPERTS, 2);
  }

  private static final List<Grid.Dtypes> HIDDEN =
      List.of(
          new Grid.Dtypes(DType.F32, DType.BF16),
          new Grid.Dtypes(DType.BF16, DType.BF16),
          new Grid.Dtypes(DType.F16, DType.F16));

  /** One scheme for the whole layer. */
  static Stream<QuantCase> uniform() {
    List<QuantCase> cases = new ArrayList<>();
    stored()
        .forEach((name, q) -> {
          for (Grid.Dtypes d : HIDDEN) {
            cases.add(
                new QuantCase(
                    name,
                    layer(size(q.scheme()), d).quantScheme(q.scheme()).build(),
                    (e, p) -> q,
                    4));
          }
        });
    for (String name : List.of("gptq v1 act-order int4", "awq group 32", "mxfp4", "fp8 block")) {
      Quantised q = get(name);
      for (Grid.Dtypes d : HIDDEN) {
        MoeConfig.Builder b = layer(size(q.scheme()), d).quantScheme(q.scheme());
        cases.add(new QuantCase(name + ", one token", b.build(), (e, p) -> q, 1));
        cases.add(new QuantCase(name + ", many tokens", b.build(), (e, p) -> q, 21));
        cases.add(new QuantCase(name + ", bias", b.expertBias(true).build(), (e, p) -> q, 4));
        cases.add(
            new QuantCase(
                name + ", no gate", b.activation(Activation.RELU2_NO_MUL).build(), (e, p) -> q, 4));
      }
    }
    return cases.stream();
  }

  private static Quantised get(String name) {
    Quantised q = stored().get(name);
    if (q == null) {
      throw new IllegalStateException("no case \"" + name + "\"");
    }
    return q;
  }

  /** Layers that keep some projections or experts in another scheme, or plain. */
  static Stream<QuantCase> mixed() {
    Quantised int4 = get("compressed-tensors " + int4(32));
    Quantised ordered = get("gptq v1 act-order int4");
    Quantised int8 = get("int8 per channel");
    Quantised fp8 = get("fp8 per channel");
    Quantised mxfp4 = get("mxfp4");
    Map<String, Plan> plans = new LinkedHashMap<>();
    plans.put("down plain", (e, p) -> p == 2 ? null : int4);
    plans.put("first expert plain", (e, p) -> e == 0 ? null : int4);
    plans.put("gate plain", (e, p) -> p == 0 ? null : fp8);
    plans.put("down in 8 bits", (e, p) -> p == 2 ? int8 : int4);
    plans.put("down in 8 bits, gate and up act-order", (e, p) -> p == 2 ? fp8 : ordered);
    plans.put("down act-order, gate and up mxfp4", (e, p) -> p == 2 ? ordered : mxfp4);
    plans.put("gate and up in two schemes", (e, p) -> p == 0 ? ordered : p == 1 ? int4 : int8);
    plans.put("a scheme an expert", (e, p) -> List.of(int4, int8, fp8).get(e % EXPERTS));
    List<QuantCase> cases = new ArrayList<>();
    plans.forEach((name, plan) -> {
      for (Grid.Dtypes d : HIDDEN) {
        cases.add(
            new QuantCase(
                name,
                layer(new int[] {64, 96}, d)
                    .quantSchemes(schemes(plan, 0, 1), schemes(plan, 2, 2))
                    .build(),
                plan,
                9));
      }
    });
    return cases.stream();
  }

  private static Set<QuantScheme> schemes(Plan plan, int from, int to) {
    Set<QuantScheme> all = new LinkedHashSet<>();
    for (int e = 0; e < EXPERTS; e++) {
      for (int p = from; p <= to; p++) {
        Quantised q = plan.of(e, p);
        all.add(q == null ? QuantScheme.NONE : q.scheme());
      }
    }
    return all;
  }

  /** Adapters on quantised experts. */
  static Stream<QuantCase> lora() {
    return Stream.concat(uniform().filter(c -> c.tokens() == 4), mixed())
        .filter(c -> c.config().inputDtype() != DType.F16)
        .map(c ->
            new QuantCase(
                c.name() + " with LoRA",
                c.config().toBuilder().lora(new LoraConfig(8, 256)).build(),
                c.plan(),
                9));
  }
}
