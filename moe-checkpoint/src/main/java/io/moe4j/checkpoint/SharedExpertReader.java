package io.moe4j.checkpoint;

import io.moe4j.api.CheckpointException;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.SharedExpertWeights;
import io.moe4j.api.weights.Weight;
import java.util.List;
import java.util.Optional;
import java.util.OptionalInt;

/** Reads the dense MLP beside the routed experts. */
final class SharedExpertReader {
  /** Keys of configs that count shared experts or give their width. */
  private static final List<String> SHARED_EXPERT_KEYS =
      List.of("n_shared_experts", "num_shared_experts", "shared_expert_intermediate_size");

  private final BlockSource source;
  private final String where;
  private final CheckpointLayout layout;
  private final ModelConfig modelConfig;
  private final BlockTensors tensors;
  private final ModuleReader modules;

  SharedExpertReader(BlockSource source) {
    this.source = source;
    this.where = source.where;
    this.layout = source.layout;
    this.modelConfig = source.modelConfig;
    this.tensors = source.tensors;
    this.modules = source.modules;
  }

  Optional<SharedExpertWeights> read(MoeConfig sizes, boolean gated) {
    List<SharedForm> present =
        layout.sharedExperts().stream().filter(f -> modules.has(f.up())).toList();
    OptionalInt promised =
        layout.sharedExperts().isEmpty()
            ? OptionalInt.empty()
            : layout.rules().sharedExpertSize(modelConfig, source.layer);
    if (present.isEmpty()) {
      if (promised.isPresent() ? promised.getAsInt() > 0 : countsSharedExperts()) {
        throw source.lacks(
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
      form.modules().forEach(m -> tensors.use(m + BlockSource.WEIGHT));
      layout.sharedExpertGate().ifPresent(g -> tensors.use(g + BlockSource.WEIGHT));
      return Optional.empty();
    }
    Tensor upBias = tensors.takeFirst(List.of(form.up() + ".bias"), form.fused() ? 2L * i : i);
    Weight up;
    Weight gate = null;
    Tensor gateBias = null;
    if (form.fused()) {
      // Rows of a scale or of a word may be of both, so a quantised one cannot be cut as it is.
      Tensor both = modules.plain("shared_expert", form.up(), 2L * i, h);
      gate = Weight.plain(form.up() + BlockSource.WEIGHT, both.narrow(0, 0, i));
      up = Weight.plain(form.up() + BlockSource.WEIGHT, both.narrow(0, i, i));
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
    (form.fused() ? List.of(down) : mlp.projections())
        .forEach(w -> source.parts.add("shared_expert", w));
    requireOneDtype(mlp.projections().stream().filter(Weight::isPlain).toList());
    Tensor downBias = tensors.takeFirst(List.of(form.down() + ".bias"), h);
    boolean biased = upBias != null && downBias != null && gated == (gateBias != null);
    if (!biased && layout.rules().hasSharedExpertBias(modelConfig, source.layer)) {
      throw source.lacks(
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
}
