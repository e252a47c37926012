package io.moe4j.checkpoint;

import io.moe4j.api.CheckpointException;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.RouterWeights;
import io.moe4j.checkpoint.ExpertForm.Orientation;
import java.lang.foreign.MemorySegment;
import java.util.List;
import java.util.Optional;
import org.jspecify.annotations.Nullable;

/**
 * Reads a block's router: matrix, biases, norm, factors, the table of a layer that routes by id.
 */
final class RouterReader {
  private final BlockSource source;
  private final String where;
  private final CheckpointLayout layout;
  private final BlockTensors tensors;

  RouterReader(BlockSource source) {
    this.source = source;
    this.where = source.where;
    this.layout = source.layout;
    this.tensors = source.tensors;
  }

  RouterWeights read(MoeConfig sizes) {
    long e = sizes.numChoices();
    String weight =
        layout.routerWeights().stream()
            .filter(source::hasMap)
            .findFirst()
            .orElseThrow(() ->
                new CheckpointException(
                    where
                        + " lacks the router's weight; looked for "
                        + String.join(", ", layout.routerWeights())));
    boolean corrected = sizes.routing().correctionBias();
    Tensor correction = corrected ? readCorrectionBias(e) : null;
    if (corrected && correction == null) {
      throw source.lacks("a correction bias", layout.correctionBiases());
    }
    Tensor bias = takeVector(layout.routerBiases(), e);
    if (bias == null
        && !layout.routerBiases().isEmpty()
        && layout.rules().hasRouterBias(source.modelConfig, source.layer)) {
      throw source.lacks("the router's bias", layout.routerBiases());
    }
    boolean inOut =
        layout.routerStored() == Orientation.IN_OUT
            || (layout.routerStored() == Orientation.BY_SHAPE
                && tensors.hasShape(weight, sizes.hiddenSize(), e)
                && !tensors.hasShape(weight, e, sizes.hiddenSize()));
    Tensor matrix =
        inOut
            ? transposed(tensors.takeFloating(weight, sizes.hiddenSize(), e))
            : source.map("router", weight, e, sizes.hiddenSize());
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
}
