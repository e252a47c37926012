package io.moe4j.cli.bench;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.tensor.DType;
import java.util.List;
import java.util.Optional;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;

/**
 * The sizes of a layer under test.
 *
 * @param name as tables and {@code --shape} have it
 * @param numExperts {@code E}
 * @param topK experts per token
 * @param hiddenSize {@code H}
 * @param intermediateSize {@code I}
 */
public record BenchShape(
    String name, int numExperts, int topK, int hiddenSize, int intermediateSize) {
  private static final Pattern SIZES =
      Pattern.compile("(\\d{1,5})x(\\d{1,4})x(\\d{1,6})x(\\d{1,6})");

  /** The shapes that have a name. */
  public static final List<BenchShape> KNOWN =
      List.of(
          new BenchShape("olmoe", 64, 8, 2048, 1024),
          new BenchShape("qwen3-30b-a3b", 128, 8, 2048, 768),
          new BenchShape("mixtral-small", 8, 2, 1024, 3584),
          new BenchShape("tiny", 8, 2, 256, 512));

  /** What GPUs are measured with, at the sizes of released models. */
  public static final List<BenchShape> DEVICE =
      List.of(
          KNOWN.get(1),
          new BenchShape("gpt-oss-120b-like", 128, 4, 2880, 2880),
          new BenchShape("mixtral-8x7b", 8, 2, 4096, 14336));

  /** Too large for most cards, so only where it is asked for by name. */
  private static final BenchShape LARGE = new BenchShape("deepseek-v3-like", 256, 8, 7168, 2048);

  /** {@return every shape that has a name} */
  public static List<BenchShape> named() {
    return Stream.of(KNOWN.stream(), DEVICE.stream(), Stream.of(LARGE))
        .flatMap(s -> s)
        .distinct()
        .toList();
  }

  /**
   * {@return a shape by its name, or by its sizes as {@code ExKxHxI}; empty if it is neither}
   *
   * @param text like {@code olmoe} or {@code 64x8x2048x1024}
   * @throws IllegalArgumentException if no layer can have these sizes; says which and why
   */
  public static Optional<BenchShape> parse(String text) {
    Matcher m = SIZES.matcher(text);
    if (m.matches()) {
      BenchShape shape =
          new BenchShape(
              text,
              Integer.parseInt(m.group(1)),
              Integer.parseInt(m.group(2)),
              Integer.parseInt(m.group(3)),
              Integer.parseInt(m.group(4)));
      shape.config(DType.F32, 1).build(); // says which size no layer can have
      return Optional.of(shape);
    }
    return named().stream().filter(s -> s.name().equals(text)).findFirst();
  }

  /** {@return bytes of all experts' weights} */
  long weightBytes(DType dtype) {
    return dtype.byteSize(3L * numExperts * hiddenSize * intermediateSize);
  }

  MoeConfig.Builder config(DType dtype, int maxTokens) {
    return MoeConfig.builder(hiddenSize, intermediateSize, numExperts, topK)
        .inputDtype(dtype)
        .weightDtype(dtype)
        .maxTokens(maxTokens);
  }
}
