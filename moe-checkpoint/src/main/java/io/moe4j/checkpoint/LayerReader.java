package io.moe4j.checkpoint;

import io.moe4j.api.CheckpointException;
import io.moe4j.api.config.Activation;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
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
import io.moe4j.checkpoint.ExpertForm.PerExpert;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Optional;
import java.util.Set;

/**
 * Turns the tensors of one MoE block into config and weights. Every tensor of the block is used or
 * the block is refused: one that is not understood would change the result.
 */
final class LayerReader {
  /** The end of a message about experts that are quantised. */
  static final String ACCEPTED =
      ". Accepted are F32, BF16 and F16, FP8, int4 and int8 of compressed-tensors, GPTQ and AWQ"
          + " (gemm), NVFP4, MXFP4 and MXFP8; a copy of the model that was dequantised to bf16 works";

  /** Each takes some hundred bytes of heap. */
  private static final int MAX_EXPERTS = 1 << 14;

  private final BlockSource source;
  private final String where;
  private final CheckpointLayout layout;
  private final BlockTensors tensors;

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

  private LayerReader(BlockSource source) {
    this.source = source;
    this.where = source.where;
    this.layout = source.layout;
    this.tensors = source.tensors;
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
    LayerReader reader =
        new LayerReader(new BlockSource(layout, config, layer, tensors, quantised));
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
      if (ExpertsReader.belongs(form, name)) {
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
    ExpertWeights experts = new ExpertsReader(source).read(sizes);
    experts.experts().forEach(e -> source.parts.add("experts", e));
    builder
        .weightDtype(dtype(experts))
        .quantSchemes(schemes(experts, true), schemes(experts, false));
    builder.expertBias(experts.expert(0).upBias() != null);
    RouterWeights router = new RouterReader(source).read(sizes);
    Optional<SharedExpertWeights> shared =
        new SharedExpertReader(source).read(sizes, sharedActivation.isGated());
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
        source.checks,
        tensors.bytes(),
        source.parts.list(),
        leftOut);
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

  private Optional<LatentWeights> readLatent(MoeConfig sizes) {
    if (sizes.latentSize() == 0) {
      return Optional.empty();
    }
    String in = layout.latentIn().orElse("");
    String out = layout.latentOut().orElse("");
    return Optional.of(
        new LatentWeights(
            source.modules.plain("latent", in, sizes.latentSize(), sizes.hiddenSize()),
            source.modules.plain("latent", out, sizes.hiddenSize(), sizes.latentSize())));
  }

  private boolean isIgnored(String name, int numExperts) {
    return layout.ignored().stream().anyMatch(name::startsWith)
        || (layout.moreExpertsIgnored()
            && layout.forms().stream()
                .anyMatch(
                    f -> f instanceof PerExpert p && ExpertsReader.isBeyond(p, name, numExperts)));
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
              + source.quantisedNote());
    }
  }
}
