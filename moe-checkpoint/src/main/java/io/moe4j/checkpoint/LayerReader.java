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
import java.util.Set;
import org.jspecify.annotations.Nullable;

/**
 * Turns the tensors of one MoE block into config and weights. Every tensor of the block is used or
 * the block is refused: one that is not understood would change the result.
 */
final class LayerReader {
  private final String where;
  private final CheckpointLayout layout;
  private final Map<String, Tensor> tensors;
  private final Set<String> used = new HashSet<>();

  /** A finished block. */
  record Block(MoeConfig config, MoeLayerWeights weights, long bytes) {}

  private LayerReader(String where, CheckpointLayout layout, Map<String, Tensor> tensors) {
    this.where = where;
    this.layout = layout;
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
   */
  static Block read(
      String where,
      CheckpointLayout layout,
      ModelConfig config,
      int layer,
      Map<String, Tensor> tensors) {
    LayerReader reader = new LayerReader(where, layout, tensors);
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
    return new Block(config, weights, bytes);
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
        form.b13().map(b -> take(b, e, wide)).orElse(null),
        form.b2().map(b -> take(b, e, h)).orElse(null),
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
        form.b13().map(b -> take(b, e, wide)).orElse(null),
        form.b2().map(b -> take(b, e, h)).orElse(null),
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
              + "; accepted are F32, BF16 and F16. Quantised weights are not read here: use a"
              + " checkpoint that was dequantised to bf16");
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
    Tensor correction =
        takeFirst(sizes.routing().correctionBias() ? layout.correctionBiases() : List.of(), e);
    if (sizes.routing().correctionBias() && correction == null) {
      throw new CheckpointException(
          where + " lacks " + String.join(" or ", layout.correctionBiases()));
    }
    return new RouterWeights(
        floating(weight, take(weight, e, sizes.hiddenSize())),
        takeFirst(layout.routerBiases(), e),
        correction);
  }

  private Optional<SharedExpertWeights> readShared(MoeConfig sizes) {
    Optional<String> module =
        layout.sharedExperts().stream()
            .filter(m -> tensors.containsKey(m + ".up_proj.weight"))
            .findFirst();
    if (module.isEmpty()) {
      return Optional.empty();
    }
    String name = module.get();
    long h = sizes.hiddenSize();
    Tensor any = tensors.get(name + ".up_proj.weight");
    if (any == null || any.dims() != 2 || any.size(0) < 1) {
      throw new CheckpointException(
          where + ": " + name + ".up_proj.weight is " + any + ", must be [I, H]");
    }
    long i = any.size(0);
    boolean gated = sizes.activation().isGated();
    ExpertWeights.Expert mlp =
        ExpertWeights.Expert.plain(
                gated ? takeFloating(name + ".gate_proj.weight", i, h) : null,
                takeFloating(name + ".up_proj.weight", i, h),
                takeFloating(name + ".down_proj.weight", h, i))
            .withBias(
                gated ? takeFirst(List.of(name + ".gate_proj.bias"), i) : null,
                takeFirst(List.of(name + ".up_proj.bias"), i),
                takeFirst(List.of(name + ".down_proj.bias"), h));
    Tensor gate =
        layout.sharedExpertGate().map(g -> takeFloating(g + ".weight", 1, h)).orElse(null);
    return Optional.of(new SharedExpertWeights(mlp, gate));
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
              + StrictJson.shorten(String.join(", ", unknown)));
    }
  }
}
