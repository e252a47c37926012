package io.moe4j.checkpoint;

import io.moe4j.api.CheckpointException;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.UnaryOperator;
import org.jspecify.annotations.Nullable;

/** The tensors of one MoE block by their name below it, and which of them were used. */
final class BlockTensors {
  private final String where;
  private final Map<String, Tensor> tensors;
  private final UnaryOperator<String> fullName;
  private final Set<String> used = new HashSet<>();

  /**
   * @param where directory and prefix, for messages
   * @param tensors by their name below the block
   * @param fullName from a name below the block to the one in the files
   */
  BlockTensors(String where, Map<String, Tensor> tensors, UnaryOperator<String> fullName) {
    this.where = where;
    this.tensors = tensors;
    this.fullName = fullName;
  }

  String where() {
    return where;
  }

  String fullName(String name) {
    return fullName.apply(name);
  }

  Set<String> names() {
    return tensors.keySet();
  }

  boolean has(String name) {
    return tensors.containsKey(name);
  }

  /** A tensor as it is, not yet used; null where there is none. */
  @Nullable Tensor find(String name) {
    return tensors.get(name);
  }

  boolean hasShape(String name, long... shape) {
    Tensor t = tensors.get(name);
    return t != null && Arrays.equals(t.shape(), shape);
  }

  void use(String name) {
    used.add(name);
  }

  List<String> unused() {
    return tensors.keySet().stream().filter(n -> !used.contains(n)).toList();
  }

  long bytes() {
    return tensors.values().stream().mapToLong(t -> t.dtype().byteSize(t.elementCount())).sum();
  }

  Tensor take(String name, long... shape) {
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

  Tensor takeFloating(String name, long... shape) {
    return floating(name, take(name, shape));
  }

  @Nullable Tensor takeFirst(List<String> names, long... shape) {
    return names.stream()
        .filter(tensors::containsKey)
        .findFirst()
        .map(n -> takeFloating(n, shape))
        .orElse(null);
  }

  Tensor floating(String name, Tensor t) {
    if (!isFloating(t)) {
      throw new CheckpointException(
          where + ": '" + name + "' is " + t + ", accepted are F32, BF16 and F16");
    }
    return t;
  }

  static boolean isFloating(Tensor t) {
    return t.dtype() == DType.F32 || t.dtype() == DType.BF16 || t.dtype() == DType.F16;
  }
}
