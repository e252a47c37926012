package io.moe4j.backend.cpu;

import io.moe4j.api.spi.Fact;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.Weight;
import io.moe4j.backend.cpu.options.PackPolicy;
import java.util.List;
import java.util.Objects;
import java.util.stream.Collectors;
import java.util.stream.Stream;

/** What was decided about some MLPs, in words, and bytes. */
final class MlpFacts {
  private MlpFacts() {}

  /**
   * Weights that the kernels in C read.
   *
   * @param kernels in words
   * @param packed what they read
   * @param policy why they were packed
   * @param team who computes
   * @param experts where the weights came from
   */
  static List<Fact> packed(
      String kernels,
      PackedWeights packed,
      PackPolicy policy,
      ThreadTeam team,
      List<ExpertWeights.Expert> experts) {
    long mapped = mappedBytes(experts);
    String text =
        "packed for these kernels (pack = "
            + policy.text()
            + ")"
            + (mapped > 0
                ? "; " + MemoryRoom.text(mapped) + " of the files are not read again"
                : "");
    return List.of(
        Fact.of("kernels", kernels),
        new Fact("weights", text, packed.bytes()),
        Fact.of("threads", team.description()));
  }

  /**
   * Weights that kernels in Java read where they are.
   *
   * @param kernels in words, with why not those in C
   * @param team who computes
   * @param experts the weights
   */
  static List<Fact> inPlace(String kernels, ThreadTeam team, List<ExpertWeights.Expert> experts) {
    long mapped = mappedBytes(experts);
    long copied =
        weights(experts)
            .filter(w -> w.isPlain() && !Rows.isInPlace(w.plain()))
            .mapToLong(Weight::byteSize)
            .sum();
    String text =
        (copied > 0 ? "copied where columns are not dense, else in place" : "in place")
            + (mapped > 0
                ? "; " + MemoryRoom.text(mapped) + " of the files, in the page cache"
                : "");
    return List.of(
        Fact.of("kernels", kernels),
        new Fact("weights", text, copied),
        Fact.of("threads", team.description()));
  }

  /** {@return one fact of those about a shared expert, whose threads are those of the experts} */
  static List<Fact> shared(List<Fact> facts) {
    String text =
        facts.stream()
            .filter(f -> !f.name().equals("threads"))
            .map(Fact::text)
            .collect(Collectors.joining("; "));
    return List.of(new Fact("shared", text, facts.stream().mapToLong(Fact::bytes).sum()));
  }

  private static long mappedBytes(List<ExpertWeights.Expert> experts) {
    return weights(experts)
        .filter(w -> Rows.segment(w.values()).isMapped())
        .mapToLong(Weight::byteSize)
        .sum();
  }

  private static Stream<Weight> weights(List<ExpertWeights.Expert> experts) {
    return experts.stream()
        .flatMap(e -> Stream.of(e.gate(), e.up(), e.down()))
        .filter(Objects::nonNull);
  }
}
