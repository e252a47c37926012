package io.moe4j.cuda.tuning;

import java.util.List;
import java.util.stream.IntStream;

/**
 * Tuned entries of one kind of layer on one card.
 *
 * @param key what they hold for
 * @param entries by adapters, rank and tokens, ascending, no two of the same sizes
 * @param <E> the backend's
 * @since 0.2.0
 */
public record TunedTable<E extends TunedEntry>(Key key, List<E> entries) {
  /**
   * What must be the same for a measurement to hold.
   *
   * @param device the card's name
   * @param capability like {@code 9.0}
   * @param kernels hash of the compiled kernels, see {@link TuningFile#kernelSet}
   * @param weights how weights are stored, in the backend's words
   * @param activation the kind of activation, in the backend's words
   * @param experts local experts
   * @param topK {@code K}
   * @param hidden width of the experts' input and output, as the kernels see it
   * @param intermediate {@code I}, likewise
   * @since 0.2.0
   */
  public record Key(
      String device,
      String capability,
      String kernels,
      String weights,
      String activation,
      int experts,
      int topK,
      int hidden,
      int intermediate) {
    /**
     * {@return whether an entry was measured on the same card with the same kernels}
     *
     * @param other of the entry
     */
    public boolean sameMachine(Key other) {
      return sameCard(other) && kernels.equals(other.kernels);
    }

    boolean sameCard(Key other) {
      return device.equals(other.device) && capability.equals(other.capability);
    }
  }

  /**
   * Orders the entries.
   *
   * @param entries in any order, of several of the same sizes the last is kept
   */
  public TunedTable {
    List<E> all = entries;
    entries =
        IntStream.range(0, all.size())
            .filter(i ->
                all.subList(i + 1, all.size()).stream().noneMatch(o -> o.sameSizes(all.get(i))))
            .mapToObj(all::get)
            .sorted(TunedEntry.BY_SIZES)
            .toList();
  }
}
