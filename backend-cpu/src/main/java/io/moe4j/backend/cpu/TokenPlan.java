package io.moe4j.backend.cpu;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import org.jspecify.annotations.Nullable;

/**
 * Which pair goes where: pairs sorted by expert, then by adapter slot, then by pair, and the
 * segments of equal expert and slot. Made once per chunk of tokens and shared by base and LoRA.
 * Reused from call to call; its arrays grow to the largest chunk seen and then stay.
 */
final class TokenPlan {
  /** Positions of a segment at most: what one thread takes at once. */
  static final int SEGMENT_TOKENS = 32;

  private static final ValueLayout.OfInt I32 = ValueLayout.JAVA_INT_UNALIGNED;

  /** Pairs that go somewhere. */
  int size;

  /** By sorted position: the pair {@code (t - t0) * K + k}. */
  int[] pair = new int[0];

  /** By pair: its sorted position, -1 if it goes nowhere. */
  int[] position = new int[0];

  /** By expert: where its positions begin; one entry more than experts. */
  final int[] expertStart;

  /** Stretches of one expert and one slot that has an adapter, none too long for one thread. */
  int segments;

  /** By expert: where its segments begin; one entry more than experts. */
  final int[] expertSegments;

  int[] segmentStart = new int[0];
  int[] segmentEnd = new int[0];
  int[] segmentExpert = new int[0];
  int[] segmentSlot = new int[0];

  private final int experts;
  private final int slots;
  private final int[] cursor;
  private int[] key = new int[0];

  TokenPlan(int experts, int slots) {
    this.experts = experts;
    this.slots = slots;
    expertStart = new int[experts + 1];
    expertSegments = new int[experts + 1];
    cursor = new int[experts * (slots + 1) + 1];
  }

  /**
   * Sorts the pairs of tokens {@code t0..t0+tokens-1}.
   *
   * @param ids int32 {@code [T, K]}; null = every pair goes to expert 0
   * @param map int32 global to local, or null
   * @param mapping int32 slot per token, or null without LoRA
   * @param live which slots hold factors for these targets
   */
  void build(
      @Nullable MemorySegment ids,
      @Nullable MemorySegment map,
      int mapSize,
      @Nullable MemorySegment mapping,
      boolean[] live,
      int t0,
      int tokens,
      int k) {
    int pairs = tokens * k;
    if (key.length < pairs) {
      key = new int[pairs];
      pair = new int[pairs];
      position = new int[pairs];
    }
    int width = slots + 1;
    Arrays.fill(cursor, 0);
    for (int t = 0; t < tokens; t++) {
      int slot = 0;
      if (mapping != null) {
        int s = mapping.getAtIndex(I32, t0 + t);
        slot = s >= 0 && s < slots && live[s] ? s + 1 : 0;
      }
      for (int j = 0; j < k; j++) {
        int p = t * k + j;
        int id = ids == null ? 0 : ids.getAtIndex(I32, (long) t0 * k + p);
        if (map != null) {
          id = id >= 0 && id < mapSize ? map.getAtIndex(I32, id) : -1;
        }
        int v = id >= 0 && id < experts ? id * width + slot : -1;
        key[p] = v;
        if (v >= 0) {
          cursor[v + 1]++;
        }
      }
    }
    for (int i = 1; i < cursor.length; i++) {
      cursor[i] += cursor[i - 1];
    }
    size = cursor[cursor.length - 1];
    findSegments(width);
    for (int p = 0; p < pairs; p++) {
      int v = key[p];
      if (v < 0) {
        position[p] = -1;
      } else {
        int at = cursor[v]++;
        position[p] = at;
        pair[at] = p;
      }
    }
  }

  /** {@return the slot of a pair that goes somewhere, -1 without adapter} */
  int slot(int pair) {
    return key[pair] % (slots + 1) - 1;
  }

  /** {@return the first segment that ends after a position} */
  int segmentAt(int sorted) {
    int lo = 0;
    int hi = segments;
    while (lo < hi) {
      int mid = (lo + hi) >>> 1;
      if (segmentEnd[mid] > sorted) {
        hi = mid;
      } else {
        lo = mid + 1;
      }
    }
    return lo;
  }

  private void findSegments(int width) {
    segments = 0;
    for (int e = 0; e < experts; e++) {
      expertStart[e] = cursor[e * width];
      expertSegments[e] = segments;
      for (int s = 1; s < width; s++) {
        int from = cursor[e * width + s];
        int to = cursor[e * width + s + 1];
        for (int p = from; p < to; p += SEGMENT_TOKENS) {
          addSegment(e, s - 1, p, Math.min(to, p + SEGMENT_TOKENS));
        }
      }
    }
    expertStart[experts] = size;
    expertSegments[experts] = segments;
  }

  private void addSegment(int expert, int slot, int from, int to) {
    if (segments == segmentStart.length) {
      int n = Math.max(64, 2 * segments);
      segmentStart = Arrays.copyOf(segmentStart, n);
      segmentEnd = Arrays.copyOf(segmentEnd, n);
      segmentExpert = Arrays.copyOf(segmentExpert, n);
      segmentSlot = Arrays.copyOf(segmentSlot, n);
    }
    segmentStart[segments] = from;
    segmentEnd[segments] = to;
    segmentExpert[segments] = expert;
    segmentSlot[segments] = slot;
    segments++;
  }
}
