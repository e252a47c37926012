package io.moe4j.checkpoint;

import io.moe4j.api.tensor.Tensor;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;

/** The factors that a file has for one module: both, or one that another module completes. */
final class FactorPair {
  final String module;
  final ModulePlace place;
  @Nullable String aName;
  @Nullable String bName;

  /** As layouts take it: {@code [r, in]}, or with experts in one of its sides. */
  @Nullable Tensor a;

  /** As layouts take it: {@code [out, r]}, or with experts in one of its sides. */
  @Nullable Tensor b;

  /** Whether its factors are transposed in the file, as mlx-lm has those of linear layers. */
  boolean turned;

  /** Whose one factor stands in for the one that is missing here. */
  @Nullable FactorPair lender;

  /** Pairs that its one factor stands in for. */
  final List<FactorPair> borrowers = new ArrayList<>();

  FactorPair(String module, ModulePlace place) {
    this.module = module;
    this.place = place;
  }

  /** Its module, for messages. */
  String source() {
    return "'" + StrictJson.shorten(module) + "'";
  }

  /** The name of A in the file, or of B where there is no A. */
  String name() {
    return aName != null ? aName : String.valueOf(bName);
  }

  /** The names of its own tensors in the file. */
  List<String> names() {
    return Stream.of(Optional.ofNullable(aName), Optional.ofNullable(bName))
        .flatMap(Optional::stream)
        .toList();
  }

  Tensor a() throws AdapterProblem {
    Tensor factor = a != null || lender == null ? a : lender.a;
    if (factor == null) {
      throw AdapterProblem.damage("lora_B without its lora_A");
    }
    return factor;
  }

  Tensor b() throws AdapterProblem {
    Tensor factor = b != null || lender == null ? b : lender.b;
    if (factor == null) {
      throw AdapterProblem.damage("lora_A without its lora_B");
    }
    return factor;
  }

  private Stream<Tensor> own() {
    return Stream.of(Optional.ofNullable(a), Optional.ofNullable(b)).flatMap(Optional::stream);
  }

  /** Tensors that shapes have not been checked of yet, but that can be spoken of as 32 bits. */
  boolean isTooLarge() {
    return own().anyMatch(t -> Arrays.stream(t.shape()).anyMatch(n -> n > Integer.MAX_VALUE));
  }

  /** {@code [0]}: nothing but a mark that the module has no such projection. */
  boolean isEmpty() {
    return own().allMatch(t -> t.dims() == 1 && t.size(0) == 0);
  }
}
