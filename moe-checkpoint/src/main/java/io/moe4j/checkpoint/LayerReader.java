package io.moe4j.checkpoint;

import io.moe4j.api.CheckpointException;
import io.moe4j.api.config.Activation;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.config.SharedExpertConfig;
import io.moe4j.api.config.SharedExpertConfig.Combine;
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
import io.moe4j.checkpoint.ExpertForm.StackedApart;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Optional;
import java.util.OptionalInt;
import java.util.Set;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;

/**
 * Turns the tensors of one MoE block into config and weights. Every tensor of the block is used or
 * the block is refused: one that is not understood would change the result.
 */
final class LayerReader {
  /** The end of a message about experts that are quantised. */
  static final String ACCEPTED =
      ". Accepted are F32, BF16 and F16, FP8, int4 and int8 of compressed-tensors, GPTQ and AWQ"
          + " (gemm), NVFP4, MXFP4 and MXFP8; a copy of the model that was dequantised to bf16 works";

  private static final String WEIGHT = ".weight";

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
  private final DataChecks checks = new DataChecks();
  private final WeightParts parts = new WeightParts();
  private final BlockTensors tensors;
  private final ModuleReader modules;

  /** A finished block. */
  record Block(
      MoeConfig config,
      MoeLayerWeights weights,
      RouterCheck router,
      DataChecks checks,
      long bytes,
      List<CheckpointDescription.WeightPart> parts,
      List<String> leftOut) {
    /** What checks of the elements read. */
    long checkedBytes() {
      return router.bytes() + checks.bytes();
    }

    /** Looks at elements that would make every result wrong, once. */
    void check() {
      router.requireFinite();
      checks.run();
    }
  }

  private LayerReader(
      String where,
      CheckpointLayout layout,
      ModelConfig modelConfig,
      int layer,
      QuantConfig quantised,
      BlockTensors tensors) {
    this.where = where;
    this.layout = layout;
    this.modelConfig = modelConfig;
    this.layer = layer;
    this.quantised = quantised.said();
    this.tensors = tensors;
    this.modules = new ModuleReader(tensors, quantised, checks, parts);
  }

  /**
   * Reads a block.
   *
   * @param layout the family
   * @param config config.json
   * @param layer layer index
   * @param tensors the block's tensors
   * @param quantised what the config says of quantisation
   */
  static Block read(
      CheckpointLayout layout,
      ModelConfig config,
      int layer,
      BlockTensors tensors,
      QuantConfig quantised) {
    String where = tensors.where();
    LayerReader reader = new LayerReader(where, layout, config, layer, quantised, tensors);
    try {
      MoeConfig.Builder builder = layout.rules().block(config, layer);
      Activation experts = builder.build().activation();
      return reader.read(
          builder,
          layout.rules().sharedActivation(config, layer, experts),
          layout.rules().sharedCombine(config, layer));
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

  private Block read(
      MoeConfig.Builder builder, Activation sharedActivation, Combine sharedCombine) {
    MoeConfig said = builder.build();
    if (layout.tokenExperts().stream().anyMatch(tensors::has)) {
      // The files decide: a layer with a table has no bias that could change the choice.
      builder.routing(said.routing().toBuilder().byTokenId(true).correctionBias(false).build());
    }
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
    experts.experts().forEach(e -> parts.add("experts", e));
    builder
        .weightDtype(dtype(experts))
        .quantSchemes(schemes(experts, true), schemes(experts, false));
    builder.expertBias(experts.expert(0).upBias() != null);
    RouterWeights router = readRouter(sizes);
    Optional<SharedExpertWeights> shared = readShared(sizes, sharedActivation.isGated());
    shared.ifPresent(s ->
        builder.sharedExpert(
            new SharedExpertConfig(
                Math.toIntExact(s.mlp().up().out()),
                sharedActivation,
                s.sigmoidGate() != null,
                sharedCombine)));
    long h = sizes.hiddenSize();
    Tensor inputNorm =
        sizes.inputNorm().isEmpty() ? null : tensors.takeFloating(layout.inputNorm().orElse(""), h);
    Tensor outputBias = tensors.takeFirst(layout.outputBias().stream().toList(), h);
    builder.outputBias(outputBias != null);
    Optional<LatentWeights> latent = readLatent(sizes);
    List<String> leftOut =
        tensors.unused().stream().filter(n -> isIgnored(n, sizes.numExperts())).toList();
    requireAllUsed(leftOut);
    MoeConfig config = builder.build();
    MoeLayerWeights weights =
        new MoeLayerWeights(experts, router, shared.orElse(null), latent.orElse(null));
    weights = inputNorm == null ? weights : weights.withInputNorm(inputNorm);
    weights = outputBias == null ? weights : weights.withOutputBias(outputBias);
    weights.requireFits(config);
    return new Block(
        config,
        weights,
        new RouterCheck(where, router),
        checks,
        tensors.bytes(),
        parts.list(),
        leftOut);
  }

  private ExpertWeights readExperts(MoeConfig sizes) {
    List<ExpertForm> present =
        layout.forms().stream()
            .filter(f -> tensors.names().stream().anyMatch(n -> belongs(f, n)))
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
      case StackedApart a -> readStackedApart(a, sizes);
      case Mxfp4Stacked m -> readMxfp4(m, sizes);
    };
  }

  private static boolean belongs(ExpertForm form, String name) {
    return switch (form) {
      case PerExpert p ->
          p.gate().flatMap(g -> PerExpert.indexOfPart(g, name)).isPresent()
              || PerExpert.indexOfPart(p.up(), name).isPresent()
              || PerExpert.indexOfPart(p.down(), name).isPresent();
      case Stacked s -> name.equals(s.w13()) || name.equals(s.w2());
      case StackedApart a -> name.equals(a.gate()) || name.equals(a.up()) || name.equals(a.down());
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
    if ((long) sizes.numExperts() * tensorsPerExpert > tensors.names().size()) {
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
        if (!hasMap(name)) {
          throw new CheckpointException(
              where
                  + " lacks '"
                  + name
                  + "': the config says "
                  + numExperts
                  + " experts, and every one needs "
                  + templates
                  + quantisedNote());
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
    boolean inOut =
        form.orientation() == Orientation.IN_OUT
            || (form.orientation() == Orientation.BY_SHAPE
                && tensors.hasShape(form.w13(), e, h, wide)
                && tensors.hasShape(form.w2(), e, i, h));
    Tensor w13 =
        floats(inOut ? tensors.take(form.w13(), e, h, wide) : tensors.take(form.w13(), e, wide, h));
    Tensor w2 = floats(inOut ? tensors.take(form.w2(), e, i, h) : tensors.take(form.w2(), e, h, i));
    return ExpertWeights.ofStacked(
        inOut ? w13.transpose(1, 2) : w13,
        inOut ? w2.transpose(1, 2) : w2,
        form.b13().map(b -> tensors.takeFloating(b, e, wide)).orElse(null),
        form.b2().map(b -> tensors.takeFloating(b, e, h)).orElse(null),
        gated,
        form.gateUp());
  }

  private ExpertWeights readStackedApart(StackedApart form, MoeConfig sizes) {
    long e = sizes.numExperts();
    long h = sizes.expertHiddenSize();
    long i = sizes.intermediateSize();
    Tensor gate = floats(tensors.take(form.gate(), e, i, h));
    Tensor up = floats(tensors.take(form.up(), e, i, h));
    Tensor down = floats(tensors.take(form.down(), e, h, i));
    List<ExpertWeights.Expert> experts = new ArrayList<>();
    for (int x = 0; x < sizes.numExperts(); x++) {
      experts.add(
          ExpertWeights.Expert.plain(gate.select(0, x), up.select(0, x), down.select(0, x)));
    }
    return new ExpertWeights(experts);
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
        form.b13().map(b -> tensors.takeFloating(b, e, wide)).orElse(null),
        form.b2().map(b -> tensors.takeFloating(b, e, h)).orElse(null),
        gated,
        form.gateUp());
  }

  /** {@code U8 [E, out, in / 32, 16]} seen as {@code F4 [E, out, in]}. */
  private Tensor blocks(String name, long experts, long out, long in) {
    long groups = groups(name, in);
    Tensor t =
        tensors.take(
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
    Tensor t = tensors.take(name + Mxfp4Stacked.SCALES, experts, out, groups);
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

  /** The dtype of those that are not quantised; BF16 where all are. */
  private DType dtype(ExpertWeights experts) {
    DType dtype = null;
    for (int e = 0; e < experts.numExperts(); e++) {
      for (Weight w : experts.expert(e).projections()) {
        if (w.isPlain() && dtype != null && w.plain().dtype() != dtype) {
          throw new CheckpointException(
              where
                  + ": expert "
                  + e
                  + " holds "
                  + w.plain()
                  + " beside "
                  + dtype
                  + "; all experts of a layer that are not quantised must have one dtype");
        }
        dtype = w.isPlain() ? w.plain().dtype() : dtype;
      }
    }
    return dtype == null ? DType.BF16 : dtype;
  }

  private static Set<QuantScheme> schemes(ExpertWeights experts, boolean first) {
    Set<QuantScheme> schemes = new LinkedHashSet<>();
    for (ExpertWeights.Expert x : experts.experts()) {
      if (first) {
        if (x.gate() != null) {
          schemes.add(x.gate().scheme());
        }
        schemes.add(x.up().scheme());
      } else {
        schemes.add(x.down().scheme());
      }
    }
    return schemes;
  }

  /** A projection of one expert; quantised ones go by the name of the module. */
  private Weight weight(String name, long out, long in) {
    return name.endsWith(WEIGHT)
        ? modules.read(module(name), out, in)
        : Weight.plain(name, floats(tensors.take(name, out, in)));
  }

  /** For messages about what is missing or not understood. */
  private String quantisedNote() {
    Optional<String> kind = QuantisedNames.kind(tensors.names());
    return kind.map(k -> "; what is here looks quantised: " + k).orElse("")
        + quantised.map(q -> "; by its config the model is quantised: " + q).orElse("")
        + (kind.isPresent() || quantised.isPresent() ? ACCEPTED : "");
  }

  private static String module(String weight) {
    return weight.endsWith(WEIGHT)
        ? weight.substring(0, weight.length() - WEIGHT.length())
        : weight;
  }

  /** Whether a linear map is in the files, quantised or not. */
  private boolean hasMap(String weight) {
    return tensors.has(weight) || (weight.endsWith(WEIGHT) && modules.has(module(weight)));
  }

  /** A linear map as floats. */
  private Tensor map(String part, String weight, long out, long in) {
    if (weight.endsWith(WEIGHT)) {
      return modules.plain(part, module(weight), out, in);
    }
    Tensor plain = tensors.takeFloating(weight, out, in);
    parts.add(part, weight, plain);
    return plain;
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
    long e = sizes.numChoices();
    String weight =
        layout.routerWeights().stream()
            .filter(this::hasMap)
            .findFirst()
            .orElseThrow(() ->
                new CheckpointException(
                    where
                        + " lacks the router's weight; looked for "
                        + String.join(", ", layout.routerWeights())));
    boolean corrected = sizes.routing().correctionBias();
    Tensor correction = corrected ? readCorrectionBias(e) : null;
    if (corrected && correction == null) {
      throw lacks("a correction bias", layout.correctionBiases());
    }
    Tensor bias = takeVector(layout.routerBiases(), e);
    if (bias == null
        && !layout.routerBiases().isEmpty()
        && layout.rules().hasRouterBias(modelConfig, layer)) {
      throw lacks("the router's bias", layout.routerBiases());
    }
    boolean inOut =
        layout.routerStored() == Orientation.IN_OUT
            || (layout.routerStored() == Orientation.BY_SHAPE
                && tensors.hasShape(weight, sizes.hiddenSize(), e)
                && !tensors.hasShape(weight, e, sizes.hiddenSize()));
    Tensor matrix =
        inOut
            ? transposed(tensors.takeFloating(weight, sizes.hiddenSize(), e))
            : map("router", weight, e, sizes.hiddenSize());
    RoutingConfig routing = sizes.routing();
    return new RouterWeights(
        matrix,
        bias,
        correction,
        routing.inputNorm().isPresent() ? readRouterNorm(sizes.hiddenSize()) : null,
        routing.expertScale() ? tensors.takeFloating(layout.expertScale().orElse(""), e) : null,
        routing.byTokenId() ? readTokenExperts(sizes) : null);
  }

  /** A copy: devices and checks want a router's rows one after the other. */
  private static Tensor transposed(Tensor t) {
    long rows = t.size(1);
    long columns = t.size(0);
    int size = t.dtype().bits() / Byte.SIZE;
    MemorySegment from = t.segment();
    MemorySegment to =
        MemorySegment.ofArray(new byte[Math.toIntExact(t.dtype().byteSize(t.elementCount()))]);
    for (long r = 0; r < rows; r++) {
      for (long c = 0; c < columns; c++) {
        MemorySegment.copy(from, (c * rows + r) * size, to, (r * columns + c) * size, size);
      }
    }
    return Tensor.of(t.dtype(), to, rows, columns);
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
      Tensor t = tensors.find(name);
      if (t != null && t.dims() == 2 && t.size(0) == 1 && t.size(1) == size) {
        return tensors.floating(name, tensors.take(name, 1, size)).select(0, 0);
      }
    }
    return tensors.takeFirst(names, size);
  }

  /** A copy, because a factor that is no tensor's belongs to it. */
  private Tensor readRouterNorm(long h) {
    float[] norm = tensors.takeFloating(layout.routerNorm().orElse(""), h).toFloats();
    for (int i = 0; i < norm.length && layout.routerNormOverRoot(); i++) {
      norm[i] = (float) (norm[i] / Math.sqrt((double) h));
    }
    return Tensor.ofFloats(norm, h);
  }

  /** {@code [V, K]} of any integers, checked, as I32. */
  private Tensor readTokenExperts(MoeConfig sizes) {
    String name = layout.tokenExperts().stream().filter(tensors::has).findFirst().orElse("");
    Tensor found = tensors.find(name);
    long rows = found == null || found.dims() != 2 ? 1 : found.size(0);
    Tensor table = tensors.take(name, rows, sizes.topK());
    if (table.dtype() != DType.I32 && table.dtype() != DType.I64) {
      throw new CheckpointException(
          where + ": '" + name + "' is " + table + ", accepted are I32 and I64");
    }
    int[] ids = new int[Math.toIntExact(table.elementCount())];
    for (int i = 0; i < ids.length; i++) {
      double id = table.get(i / sizes.topK(), i % sizes.topK());
      if (id < 0 || id >= sizes.numExperts()) {
        throw new CheckpointException(
            where
                + ": '"
                + name
                + "' sends token "
                + i / sizes.topK()
                + " to expert "
                + (long) id
                + ", must be 0.."
                + (sizes.numExperts() - 1));
      }
      ids[i] = (int) id;
    }
    return Tensor.ofInts(ids, rows, sizes.topK());
  }

  /** {@code [E]}, or a row of {@code [N, E]}. */
  private @Nullable Tensor readCorrectionBias(long e) {
    Optional<String> found = layout.correctionBiases().stream().filter(tensors::has).findFirst();
    if (found.isEmpty()) {
      return null;
    }
    Tensor t = tensors.find(found.get());
    int row = layout.correctionBiasRow();
    if (t == null || t.dims() != 2) {
      return tensors.takeFloating(found.get(), e);
    }
    if (t.size(0) <= row) {
      throw new CheckpointException(
          where + ": '" + found.get() + "' is " + t + ", must have more than " + row + " rows");
    }
    return tensors.takeFloating(found.get(), t.size(0), e).select(0, row);
  }

  private Optional<SharedExpertWeights> readShared(MoeConfig sizes, boolean gated) {
    List<SharedForm> present =
        layout.sharedExperts().stream().filter(f -> modules.has(f.up())).toList();
    OptionalInt promised =
        layout.sharedExperts().isEmpty()
            ? OptionalInt.empty()
            : layout.rules().sharedExpertSize(modelConfig, layer);
    if (present.isEmpty()) {
      if (promised.isPresent() ? promised.getAsInt() > 0 : countsSharedExperts()) {
        throw lacks(
            "the shared expert", layout.sharedExperts().stream().map(SharedForm::up).toList());
      }
      return Optional.empty();
    }
    SharedForm form = present.getFirst();
    String name = form.up() + ".weight";
    int rows = form.fused() ? 2 : 1;
    long outputs =
        modules
            .outputs(form.up())
            .filter(n -> n % rows == 0 && n / rows <= Integer.MAX_VALUE)
            .orElseThrow(() ->
                new CheckpointException(
                    where
                        + ": "
                        + name
                        + " is "
                        + tensors.find(name)
                        + ", must be "
                        + (form.fused() ? "[2I, H]" : "[I, H]")));
    int i = (int) (outputs / rows);
    if (promised.isPresent() && promised.getAsInt() != i) {
      throw new CheckpointException(
          where
              + ": the shared expert "
              + name
              + " has "
              + outputs
              + " outputs, "
              + modelConfig.source()
              + " promises "
              + (promised.getAsInt() == 0 ? "none" : "the width " + promised.getAsInt()));
    }
    return takeShared(form, i, sizes.hiddenSize(), gated);
  }

  /** What the usual keys say, of families whose rules say nothing. */
  private boolean countsSharedExperts() {
    return !layout.sharedExperts().isEmpty()
        && SHARED_EXPERT_KEYS.stream().anyMatch(modelConfig::isPositive);
  }

  /** A shared expert of width 0 adds nothing; transformers saves one where there are none. */
  private Optional<SharedExpertWeights> takeShared(SharedForm form, int i, long h, boolean gated) {
    if (i == 0) {
      form.modules().forEach(m -> tensors.use(m + WEIGHT));
      layout.sharedExpertGate().ifPresent(g -> tensors.use(g + WEIGHT));
      return Optional.empty();
    }
    Tensor upBias = tensors.takeFirst(List.of(form.up() + ".bias"), form.fused() ? 2L * i : i);
    Weight up;
    Weight gate = null;
    Tensor gateBias = null;
    if (form.fused()) {
      // Rows of a scale or of a word may be of both, so a quantised one cannot be cut as it is.
      Tensor both = modules.plain("shared_expert", form.up(), 2L * i, h);
      gate = Weight.plain(form.up() + WEIGHT, both.narrow(0, 0, i));
      up = Weight.plain(form.up() + WEIGHT, both.narrow(0, i, i));
      gateBias = upBias == null ? null : upBias.narrow(0, 0, i);
      upBias = upBias == null ? null : upBias.narrow(0, i, i);
    } else {
      up = modules.read(form.up(), i, h);
      if (gated) {
        String name =
            form.gate()
                .orElseThrow(() ->
                    new CheckpointException(
                        where + ": the shared expert has a gate, but the layout names none"));
        gate = modules.read(name, i, h);
        gateBias = tensors.takeFirst(List.of(name + ".bias"), i);
      }
    }
    Weight down = modules.read(form.down(), h, i);
    ExpertWeights.Expert mlp = ExpertWeights.Expert.of(gate, up, down);
    (form.fused() ? List.of(down) : mlp.projections()).forEach(w -> parts.add("shared_expert", w));
    requireOneDtype(mlp.projections().stream().filter(Weight::isPlain).toList());
    Tensor downBias = tensors.takeFirst(List.of(form.down() + ".bias"), h);
    boolean biased = upBias != null && downBias != null && gated == (gateBias != null);
    if (!biased && layout.rules().hasSharedExpertBias(modelConfig, layer)) {
      throw lacks(
          "a bias of the shared expert", List.of(form.up() + ".bias", form.down() + ".bias"));
    }
    Tensor sigmoidGate =
        layout
            .sharedExpertGate()
            .map(g -> modules.plain("shared_expert_gate", g, 1, h))
            .orElse(null);
    return Optional.of(
        new SharedExpertWeights(mlp.withBias(gateBias, upBias, downBias), sigmoidGate));
  }

  private void requireOneDtype(List<Weight> plain) {
    for (Weight w : plain) {
      if (w.plain().dtype() != plain.getFirst().plain().dtype()) {
        throw new CheckpointException(
            where
                + ": the shared expert holds "
                + w
                + " beside "
                + plain.getFirst()
                + "; its maps that are not quantised must have one dtype");
      }
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
            modules.plain("latent", in, sizes.latentSize(), sizes.hiddenSize()),
            modules.plain("latent", out, sizes.hiddenSize(), sizes.latentSize())));
  }

  private boolean isIgnored(String name, int numExperts) {
    return layout.ignored().stream().anyMatch(name::startsWith)
        || (layout.moreExpertsIgnored()
            && layout.forms().stream()
                .anyMatch(f -> f instanceof PerExpert p && isBeyond(p, name, numExperts)));
  }

  private static boolean isBeyond(PerExpert form, String name, int numExperts) {
    return Stream.concat(form.gate().stream(), Stream.of(form.up(), form.down()))
        .flatMap(template -> PerExpert.indexOfPart(template, name).stream())
        .anyMatch(index -> index.length() <= 6 && Integer.parseInt(index) >= numExperts);
  }

  private void requireAllUsed(List<String> leftOut) {
    List<String> unknown = tensors.unused().stream().filter(n -> !leftOut.contains(n)).toList();
    if (!unknown.isEmpty()) {
      throw new CheckpointException(
          where
              + " holds "
              + unknown.size()
              + " tensors that the layout '"
              + layout.modelType()
              + "' does not know, which would change the block's result: "
              + StrictJson.shorten(String.join(", ", unknown))
              + quantisedNote());
    }
  }
}
