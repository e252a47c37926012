package io.moe4j.checkpoint;

import io.moe4j.api.CheckpointException;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.SharedExpertConfig;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.LatentWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.RouterWeights;
import io.moe4j.api.weights.SharedExpertWeights;
import io.moe4j.api.weights.Weight;
import io.moe4j.checkpoint.ExpertForm.Mxfp4Stacked;
import io.moe4j.checkpoint.ExpertForm.Orientation;
import io.moe4j.checkpoint.ExpertForm.PerExpert;
import io.moe4j.checkpoint.ExpertForm.Stacked;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.OptionalInt;
import java.util.Set;
import org.jspecify.annotations.Nullable;

/**
 * Turns the tensors of one MoE block into config and weights. Every tensor of the block is used or
 * the block is refused: one that is not understood would change the result.
 */
final class LayerReader {
  /** The end of a message about experts that are quantised. */
  static final String ACCEPTED =
      ". Accepted are F32, BF16 and F16 experts, and MXFP4 of gpt_oss; a copy of the model that was"
          + " dequantised to bf16 works";

  /** Each takes some hundred bytes of heap. */
  private static final int MAX_EXPERTS = 1 << 14;

  /** Keys of configs that count shared experts or give their width. */
  private static final List<String> SHARED_EXPERT_KEYS =
      List.of("n_shared_experts", "num_shared_experts", "shared_expert_intermediate_size");

  private final String where;
  private final CheckpointLayout layout;
  private final ModelConfig modelConfig;
  private final int layer;
  private final Optional<String> quantised;
  private final Map<String, Tensor> tensors;
  private final Set<String> used = new HashSet<>();

  /** A finished block. */
  record Block(MoeConfig config, MoeLayerWeights weights, RouterCheck router, long bytes) {}

  private LayerReader(
      String where,
      CheckpointLayout layout,
      ModelConfig modelConfig,
      int layer,
      Optional<String> quantised,
      Map<String, Tensor> tensors) {
    this.where = where;
    this.layout = layout;
    this.modelConfig = modelConfig;
    this.layer = layer;
    this.quantised = quantised;
    this.tensors = tensors;
  }

  /**
   * Reads a block.
   *
   * @param where directory and prefix, for messages
   * @param layout the family
   * @param config config.json
   * @param layer layer index
   * @param tensors the block's tensors by their name below the block
   * @param quantised what the config says of quantisation, for messages
   */
  static Block read(
      String where,
      CheckpointLayout layout,
      ModelConfig config,
      int layer,
      Map<String, Tensor> tensors,
      Optional<String> quantised) {
    LayerReader reader = new LayerReader(where, layout, config, layer, quantised, tensors);
    try {
      return reader.read(layout.rules().block(config, layer));
    } catch (IllegalArgumentException e) {
      throw new CheckpointException(
          where + " does not fit " + config.source() + ": " + e.getMessage(), e);
    }
  }

  /** Whether a tensor of that name (below the block) belongs to routed experts of some form. */
  static boolean isExpertTensor(CheckpointLayout layout, String name) {
    for (ExpertForm form : layout.forms()) {
      if (belongs(form, name)) {
        return true;
      }
    }
    return false;
  }

  private Block read(MoeConfig.Builder builder) {
    MoeConfig sizes = builder.build();
    if (sizes.numExperts() > MAX_EXPERTS) {
      throw new CheckpointException(
          where
              + ": the config says "
              + sizes.numExperts()
              + " experts; accepted are at most "
              + MAX_EXPERTS);
    }
    ExpertWeights experts = readExperts(sizes);
    if (experts.expert(0).up().isPlain()) {
      builder.weightDtype(dtype(experts));
    } else {
      builder.quantScheme(QuantScheme.MXFP4).weightDtype(DType.BF16);
    }
    builder.expertBias(experts.expert(0).upBias() != null);
    RouterWeights router = readRouter(sizes);
    Optional<SharedExpertWeights> shared = readShared(sizes);
    shared.ifPresent(s ->
        builder.sharedExpert(
            new SharedExpertConfig(
                Math.toIntExact(s.mlp().up().out()), sizes.activation(), s.sigmoidGate() != null)));
    Optional<LatentWeights> latent = readLatent(sizes);
    requireAllUsed();
    MoeConfig config = builder.build();
    MoeLayerWeights weights =
        new MoeLayerWeights(experts, router, shared.orElse(null), latent.orElse(null));
    weights.requireFits(config);
    long bytes =
        tensors.values().stream().mapToLong(t -> t.dtype().byteSize(t.elementCount())).sum();
    return new Block(config, weights, new RouterCheck(where, router), bytes);
  }

  private ExpertWeights readExperts(MoeConfig sizes) {
    List<ExpertForm> present =
        layout.forms().stream()
            .filter(f -> tensors.keySet().stream().anyMatch(n -> belongs(f, n)))
            .toList();
    if (present.size() != 1) {
      throw new CheckpointException(
          where
              + (present.isEmpty()
                  ? " holds no routed experts in a known form"
                  : " holds routed experts in more than one form: " + present));
    }
    return switch (present.getFirst()) {
      case PerExpert p -> readPerExpert(p, sizes);
      case Stacked s -> readStacked(s, sizes);
      case Mxfp4Stacked m -> readMxfp4(m, sizes);
    };
  }

  private static boolean belongs(ExpertForm form, String name) {
    return switch (form) {
      case PerExpert p ->
          p.gate().flatMap(g -> PerExpert.index(g, name)).isPresent()
              || PerExpert.index(p.up(), name).isPresent()
              || PerExpert.index(p.down(), name).isPresent();
      case Stacked s -> name.equals(s.w13()) || name.equals(s.w2());
      case Mxfp4Stacked m -> m.names(name);
    };
  }

  private ExpertWeights readPerExpert(PerExpert form, MoeConfig sizes) {
    long h = sizes.expertHiddenSize();
    long i = sizes.intermediateSize();
    boolean gated = sizes.activation().isGated();
    if (gated != form.gate().isPresent()) {
      throw new CheckpointException(
          where
              + " holds experts "
              + (gated ? "without" : "with")
              + " gate, but the activation is "
              + sizes.activation().kind());
    }
    int tensorsPerExpert = gated ? 3 : 2;
    if ((long) sizes.numExperts() * tensorsPerExpert > tensors.size()) {
      requireEveryExpert(form, sizes.numExperts());
    }
    List<ExpertWeights.Expert> experts = new ArrayList<>();
    for (int e = 0; e < sizes.numExperts(); e++) {
      int expert = e;
      experts.add(
          ExpertWeights.Expert.of(
              form.gate().map(g -> weight(PerExpert.name(g, expert), i, h)).orElse(null),
              weight(PerExpert.name(form.up(), e), i, h),
              weight(PerExpert.name(form.down(), e), h, i)));
    }
    return new ExpertWeights(experts);
  }

  private void requireEveryExpert(PerExpert form, int numExperts) {
    List<String> templates = new ArrayList<>(form.gate().stream().toList());
    templates.add(form.up());
    templates.add(form.down());
    // At most as many rounds as there are tensors: a config may claim any number of experts.
    for (int e = 0; e < numExperts; e++) {
      for (String template : templates) {
        String name = PerExpert.name(template, e);
        if (!tensors.containsKey(name)) {
          throw new CheckpointException(
              where
                  + " lacks '"
                  + name
                  + "': the config says "
                  + numExperts
                  + " experts, and every one needs "
                  + templates);
        }
      }
    }
  }

  private ExpertWeights readStacked(Stacked form, MoeConfig sizes) {
    long e = sizes.numExperts();
    long h = sizes.expertHiddenSize();
    long i = sizes.intermediateSize();
    boolean gated = sizes.activation().isGated();
    long wide = gated ? 2 * i : i;
    boolean inOut = form.orientation() == Orientation.IN_OUT;
    Tensor w13 = floats(inOut ? take(form.w13(), e, h, wide) : take(form.w13(), e, wide, h));
    Tensor w2 = floats(inOut ? take(form.w2(), e, i, h) : take(form.w2(), e, h, i));
    return ExpertWeights.ofStacked(
        inOut ? w13.transpose(1, 2) : w13,
        inOut ? w2.transpose(1, 2) : w2,
        form.b13().map(b -> takeFloating(b, e, wide)).orElse(null),
        form.b2().map(b -> takeFloating(b, e, h)).orElse(null),
        gated,
        form.gateUp());
  }

  private ExpertWeights readMxfp4(Mxfp4Stacked form, MoeConfig sizes) {
    long e = sizes.numExperts();
    long h = sizes.expertHiddenSize();
    long i = sizes.intermediateSize();
    boolean gated = sizes.activation().isGated();
    long wide = gated ? 2 * i : i;
    return ExpertWeights.ofStackedMxfp4(
        blocks(form.w13(), e, wide, h),
        scales(form.w13(), e, wide, h),
        blocks(form.w2(), e, h, i),
        scales(form.w2(), e, h, i),
        form.b13().map(b -> takeFloating(b, e, wide)).orElse(null),
        form.b2().map(b -> takeFloating(b, e, h)).orElse(null),
        gated,
        form.gateUp());
  }

  /** {@code U8 [E, out, in / 32, 16]} seen as {@code F4 [E, out, in]}. */
  private Tensor blocks(String name, long experts, long out, long in) {
    long groups = groups(name, in);
    Tensor t =
        take(
            name + Mxfp4Stacked.BLOCKS,
            experts,
            out,
            groups,
            QuantScheme.MXFP4.scaleColumns() * DType.F4.bits() / 8);
    requireBytes(name + Mxfp4Stacked.BLOCKS, t);
    return Tensor.strided(
        DType.F4,
        t.memory(),
        t.byteOffset(),
        new long[] {experts, out, in},
        new long[] {out * in, in, 1});
  }

  private Tensor scales(String name, long experts, long out, long in) {
    long groups = groups(name, in);
    Tensor t = take(name + Mxfp4Stacked.SCALES, experts, out, groups);
    requireBytes(name + Mxfp4Stacked.SCALES, t);
    return Tensor.strided(
        DType.F8_E8M0,
        t.memory(),
        t.byteOffset(),
        new long[] {experts, out, groups},
        new long[] {out * groups, groups, 1});
  }

  private long groups(String name, long in) {
    int group = QuantScheme.MXFP4.scaleColumns();
    if (in % group != 0) {
      throw new CheckpointException(
          where
              + ": '"
              + name
              + "' is MXFP4, but its "
              + in
              + " inputs are no multiple of "
              + group);
    }
    return in / group;
  }

  private void requireBytes(String name, Tensor t) {
    if (t.dtype().bits() != Byte.SIZE || !t.isContiguous()) {
      throw new CheckpointException(where + ": '" + name + "' is " + t + ", must be U8");
    }
  }

  private DType dtype(ExpertWeights experts) {
    DType dtype = experts.expert(0).up().plain().dtype();
    for (int e = 0; e < experts.numExperts(); e++) {
      for (Weight w : experts.expert(e).projections()) {
        if (w.plain().dtype() != dtype) {
          throw new CheckpointException(
              where
                  + ": expert "
                  + e
                  + " holds "
                  + w.plain()
                  + " beside "
                  + dtype
                  + "; all experts of a layer must have one dtype");
        }
      }
    }
    return dtype;
  }

  private Weight weight(String name, long out, long in) {
    return Weight.plain(name, floats(take(name, out, in)));
  }

  private Tensor floats(Tensor t) {
    DType dtype = t.dtype();
    if (dtype != DType.F32 && dtype != DType.BF16 && dtype != DType.F16) {
      throw new CheckpointException(
          where
              + ": the experts are "
              + dtype
              + quantised.map(q -> ", by the config " + q).orElse("")
              + ACCEPTED);
    }
    return t;
  }

  private RouterWeights readRouter(MoeConfig sizes) {
    long e = sizes.numExperts();
    String weight =
        layout.routerWeights().stream()
            .filter(tensors::containsKey)
            .findFirst()
            .orElseThrow(() ->
                new CheckpointException(
                    where
                        + " lacks the router's weight; looked for "
                        + String.join(", ", layout.routerWeights())));
    boolean corrected = sizes.routing().correctionBias();
    Tensor correction = takeVector(corrected ? layout.correctionBiases() : List.of(), e);
    if (corrected && correction == null) {
      throw lacks("a correction bias", layout.correctionBiases());
    }
    Tensor bias = takeVector(layout.routerBiases(), e);
    if (bias == null
        && !layout.routerBiases().isEmpty()
        && layout.rules().hasRouterBias(modelConfig, layer)) {
      throw lacks("the router's bias", layout.routerBiases());
    }
    return new RouterWeights(
        floating(weight, take(weight, e, sizes.hiddenSize())), bias, correction);
  }

  private CheckpointException lacks(String what, List<String> names) {
    return new CheckpointException(
        where
            + " lacks "
            + what
            + ", which "
            + modelConfig.source()
            + " or its model_type promises; looked for "
            + String.join(", ", names));
  }

  /** {@code [E]}, which some files keep as {@code [1, E]}. */
  private @Nullable Tensor takeVector(List<String> names, long size) {
    for (String name : names) {
      Tensor t = tensors.get(name);
      if (t != null && t.dims() == 2 && t.size(0) == 1 && t.size(1) == size) {
        return floating(name, take(name, 1, size)).select(0, 0);
      }
    }
    return takeFirst(names, size);
  }

  private Optional<SharedExpertWeights> readShared(MoeConfig sizes) {
    Optional<String> module =
        layout.sharedExperts().stream()
            .filter(m -> tensors.containsKey(m + ".up_proj.weight"))
            .findFirst();
    OptionalInt promised =
        layout.sharedExperts().isEmpty()
            ? OptionalInt.empty()
            : layout.rules().sharedExpertSize(modelConfig, layer);
    if (module.isEmpty()) {
      if (promised.isPresent() ? promised.getAsInt() > 0 : countsSharedExperts()) {
        throw lacks("the shared expert", layout.sharedExperts());
      }
      return Optional.empty();
    }
    String name = module.get();
    Tensor up = tensors.get(name + ".up_proj.weight");
    if (up == null || up.dims() != 2 || up.size(0) > Integer.MAX_VALUE) {
      throw new CheckpointException(
          where + ": " + name + ".up_proj.weight is " + up + ", must be [I, H]");
    }
    int i = (int) up.size(0);
    if (promised.isPresent() && promised.getAsInt() != i) {
      throw new CheckpointException(
          where
              + ": the shared expert "
              + name
              + ".up_proj.weight is "
              + up
              + ", "
              + modelConfig.source()
              + " promises "
              + (promised.getAsInt() == 0 ? "none" : "the width " + promised.getAsInt()));
    }
    return takeShared(name, i, sizes);
  }

  /** What the usual keys say, of families whose rules say nothing. */
  private boolean countsSharedExperts() {
    return !layout.sharedExperts().isEmpty()
        && SHARED_EXPERT_KEYS.stream().anyMatch(modelConfig::isPositive);
  }

  /** A shared expert of width 0 adds nothing; transformers saves one where there are none. */
  private Optional<SharedExpertWeights> takeShared(String name, int i, MoeConfig sizes) {
    long h = sizes.hiddenSize();
    boolean gated = sizes.activation().isGated();
    Tensor gate = gated ? takeFloating(name + ".gate_proj.weight", i, h) : null;
    Tensor up = takeFloating(name + ".up_proj.weight", i, h);
    Tensor down = takeFloating(name + ".down_proj.weight", h, i);
    requireOneDtype(name, up, gate);
    requireOneDtype(name, up, down);
    Tensor gateBias = gated ? takeFirst(List.of(name + ".gate_proj.bias"), i) : null;
    Tensor upBias = takeFirst(List.of(name + ".up_proj.bias"), i);
    Tensor downBias = takeFirst(List.of(name + ".down_proj.bias"), h);
    boolean biased = upBias != null && downBias != null && gated == (gateBias != null);
    if (!biased && layout.rules().hasSharedExpertBias(modelConfig, layer)) {
      throw lacks(
          "a bias of the shared expert", List.of(name + ".up_proj.bias", name + ".down_proj.bias"));
    }
    Tensor sigmoidGate =
        layout.sharedExpertGate().map(g -> takeFloating(g + ".weight", 1, h)).orElse(null);
    return i == 0
        ? Optional.empty()
        : Optional.of(
            new SharedExpertWeights(
                ExpertWeights.Expert.plain(gate, up, down).withBias(gateBias, upBias, downBias),
                sigmoidGate));
  }

  private void requireOneDtype(String name, Tensor up, @Nullable Tensor other) {
    if (other != null && other.dtype() != up.dtype()) {
      throw new CheckpointException(
          where
              + ": "
              + name
              + " holds "
              + other
              + " beside "
              + up
              + "; a shared expert must have one dtype");
    }
  }

  private Optional<LatentWeights> readLatent(MoeConfig sizes) {
    if (sizes.latentSize() == 0) {
      return Optional.empty();
    }
    String in = layout.latentIn().orElse("");
    String out = layout.latentOut().orElse("");
    return Optional.of(
        new LatentWeights(
            takeFloating(in + ".weight", sizes.latentSize(), sizes.hiddenSize()),
            takeFloating(out + ".weight", sizes.hiddenSize(), sizes.latentSize())));
  }

  private @Nullable Tensor takeFirst(List<String> names, long... shape) {
    return names.stream()
        .filter(tensors::containsKey)
        .findFirst()
        .map(n -> takeFloating(n, shape))
        .orElse(null);
  }

  private Tensor takeFloating(String name, long... shape) {
    return floating(name, take(name, shape));
  }

  private Tensor floating(String name, Tensor t) {
    if (t.dtype() != DType.F32 && t.dtype() != DType.BF16 && t.dtype() != DType.F16) {
      throw new CheckpointException(
          where + ": '" + name + "' is " + t + ", accepted are F32, BF16 and F16");
    }
    return t;
  }

  private Tensor take(String name, long... shape) {
    Tensor t = tensors.get(name);
    if (t == null) {
      throw new CheckpointException(
          where + " lacks '" + name + "' of shape " + Arrays.toString(shape));
    }
    if (!Arrays.equals(t.shape(), shape)) {
      throw new CheckpointException(
          where
              + ": '"
              + name
              + "' is "
              + t
              + ", the config asks for shape "
              + Arrays.toString(shape));
    }
    used.add(name);
    return t;
  }

  private void requireAllUsed() {
    List<String> unknown = tensors.keySet().stream().filter(n -> !used.contains(n)).toList();
    if (!unknown.isEmpty()) {
      throw new CheckpointException(
          where
              + " holds "
              + unknown.size()
              + " tensors that the layout '"
              + layout.modelType()
              + "' does not know, which would change the block's result: "
              + StrictJson.shorten(String.join(", ", unknown))
              + quantised.map(q -> "; the model is quantised: " + q).orElse(""));
    }
  }
}
