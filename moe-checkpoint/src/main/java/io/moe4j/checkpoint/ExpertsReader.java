package io.moe4j.checkpoint;

import io.moe4j.api.CheckpointException;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.Weight;
import io.moe4j.checkpoint.ExpertForm.Mxfp4Stacked;
import io.moe4j.checkpoint.ExpertForm.Orientation;
import io.moe4j.checkpoint.ExpertForm.PerExpert;
import io.moe4j.checkpoint.ExpertForm.Stacked;
import io.moe4j.checkpoint.ExpertForm.StackedApart;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.Stream;

/** Reads the routed experts of a block, in whichever form the files have them. */
final class ExpertsReader {
  private final BlockSource source;
  private final String where;
  private final BlockTensors tensors;

  ExpertsReader(BlockSource source) {
    this.source = source;
    this.where = source.where;
    this.tensors = source.tensors;
  }

  ExpertWeights read(MoeConfig sizes) {
    List<ExpertForm> present =
        source.layout.forms().stream()
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

  static boolean belongs(ExpertForm form, String name) {
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
        if (!source.hasMap(name)) {
          throw new CheckpointException(
              where
                  + " lacks '"
                  + name
                  + "': the config says "
                  + numExperts
                  + " experts, and every one needs "
                  + templates
                  + source.quantisedNote());
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

  /** A projection of one expert; quantised ones go by the name of the module. */
  private Weight weight(String name, long out, long in) {
    return name.endsWith(BlockSource.WEIGHT)
        ? source.modules.read(BlockSource.module(name), out, in)
        : Weight.plain(name, floats(tensors.take(name, out, in)));
  }

  private Tensor floats(Tensor t) {
    DType dtype = t.dtype();
    if (dtype != DType.F32 && dtype != DType.BF16 && dtype != DType.F16) {
      throw new CheckpointException(
          where
              + ": the experts are "
              + dtype
              + source.quantised.map(q -> ", by the config " + q).orElse("")
              + LayerReader.ACCEPTED);
    }
    return t;
  }

  static boolean isBeyond(PerExpert form, String name, int numExperts) {
    return Stream.concat(form.gate().stream(), Stream.of(form.up(), form.down()))
        .flatMap(template -> PerExpert.indexOfPart(template, name).stream())
        .anyMatch(index -> index.length() <= 6 && Integer.parseInt(index) >= numExperts);
  }
}
