package io.moe4j.checkpoint;

import io.moe4j.api.tensor.Tensor;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.stream.Stream;

/**
 * The tensors of an adapter file, in the words of {@link AdapterKey} whoever wrote it.
 *
 * @param keys each tensor's name taken apart, in the order of the file
 * @param stored the tensors as the file has them, contiguous
 * @param factors the tensors as layouts take them: A is {@code [r, in]} and B {@code [out, r]}, or
 *     with experts in one of the sides
 * @param unreadable why a tensor cannot be had, by name
 */
record AdapterTensors(
    Map<String, AdapterKey> keys,
    Map<String, Tensor> stored,
    Map<String, Tensor> factors,
    Map<String, String> unreadable) {

  /**
   * The tensors of a file.
   *
   * @param form who wrote it
   * @param file opened
   */
  static AdapterTensors of(AdapterConfig.Form form, ShardedTensors file) {
    boolean mlx = form == AdapterConfig.Form.MLX;
    Map<String, AdapterKey> keys = new LinkedHashMap<>();
    Stream.concat(file.tensors().keySet().stream(), file.problems().keySet().stream())
        .forEach(t -> keys.put(t, mlx ? MlxFactors.parse(t) : AdapterKey.parse(t)));
    return new AdapterTensors(
        keys,
        file.tensors(),
        mlx ? MlxFactors.turned(keys, file.tensors()) : file.tensors(),
        file.problems());
  }
}
