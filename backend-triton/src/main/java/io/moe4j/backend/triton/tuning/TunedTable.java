package io.moe4j.backend.triton.tuning;

import java.util.Comparator;
import java.util.List;

/**
 * Tuned entries of one kind of layer on one card.
 *
 * @param key what they hold for
 * @param entries by adapters, rank and tokens, ascending, no two of the same sizes
 */
record TunedTable(Key key, List<TunedEntry> entries) {
  /**
   * What must be the same for a measurement to hold.
   *
   * @param device the card's name
   * @param capability like {@code 9.0}
   * @param kernels hash of the compiled kernels, see {@link TuningFile#kernelSet}
   * @param weights {@code bf16}, {@code f16}, {@code mxfp4}
   * @param activation {@code silu}, {@code any}, {@code none} without gate
   * @param experts local experts
   * @param topK {@code K}
   * @param hidden width of the experts' input and output, as the kernels see it
   * @param intermediate {@code I}, likewise
   */
  record Key(
      String device,
      String capability,
      String kernels,
      String weights,
      String activation,
      int experts,
      int topK,
      int hidden,
      int intermediate) {
    /** Whether an entry was measured on the same card with the same kernels. */
    boolean sameMachine(Key other) {
      return device.equals(other.device)
          && capability.equals(other.capability)
          && kernels.equals(other.kernels);
    }
  }

  /**
   * @param entries in any order, of several of the same sizes the last is kept
   */
  TunedTable {
    List<TunedEntry> all = entries;
    entries =
        java.util.stream.IntStream.range(0, all.size())
            .filter(i ->
                all.subList(i + 1, all.size()).stream().noneMatch(o -> o.sameSizes(all.get(i))))
            .mapToObj(all::get)
            .sorted(
                Comparator.comparingInt(TunedEntry::adapters)
                    .thenComparingInt(TunedEntry::rank)
                    .thenComparingInt(TunedEntry::tokens))
            .toList();
  }
}
