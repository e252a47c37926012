package io.moe4j.lora;

import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * Which pairs get a delta, in groups of one (expert, slot): two stable counting sorts, by slot and
 * then by expert, so the time is linear in pairs however many adapters there are. Reused from call
 * to call; arrays grow by doubling.
 */
final class PairPlan {
  /** Rows that share one pass over a group's factors. */
  static final int GROUP_ROWS = 16;

  private @Nullable LoraLayer[] layers = new LoraLayer[0];
  private boolean[] oneForAll = new boolean[0];
  private int[] slotStart = new int[0];
  private int[] expertStart = new int[0];
  private int[] slotOf = new int[0];
  private int[] expertOf = new int[0];
  private int[] found = new int[0];
  private int[] bySlot = new int[0];
  private int[] pairs = new int[0];
  private int[] groups = new int[0];
  private int pairCount;
  private int groupCount;
  private int expertBound;
  private int maxRank;

  /**
   * @param targets what the call adds; slots without any of them are left out
   * @param ids expert of each pair, null = expert 0
   * @param expertMap global to local, null = ids are local
   * @param mapping slot of each pair
   */
  void build(
      MoeLoraContext context,
      List<LoraTarget> targets,
      int numPairs,
      @Nullable PairRows ids,
      @Nullable PairRows expertMap,
      int expertMapSize,
      PairRows mapping) {
    int maxLoras = context.maxLoras();
    readSlots(context, targets, maxLoras);
    reserve(numPairs, maxLoras);
    Arrays.fill(slotStart, 0, maxLoras + 1, 0);
    int n = 0;
    int maxExpert = 0;
    for (int p = 0; p < numPairs; p++) {
      int slot = mapping.segment().get(FloatElements.I32, mapping.offset(p));
      if (slot < 0 || slot >= maxLoras || layers[slot] == null) {
        continue;
      }
      int expert = 0;
      if (ids != null) {
        expert = ids.segment().get(FloatElements.I32, ids.offset(p));
        if (expertMap != null && expert >= 0) {
          expert =
              expert < expertMapSize
                  ? expertMap.segment().get(FloatElements.I32, expertMap.offset(expert))
                  : -1;
        }
        if (expert < 0 || expert >= expertBound) {
          continue;
        }
        if (oneForAll[slot]) {
          expert = 0;
        }
      }
      found[n] = p;
      slotOf[p] = slot;
      expertOf[p] = expert;
      maxExpert = Math.max(maxExpert, expert);
      slotStart[slot + 1]++;
      n++;
    }
    pairCount = n;
    sort(maxLoras, maxExpert);
    group();
  }

  private void readSlots(MoeLoraContext context, List<LoraTarget> targets, int maxLoras) {
    if (layers.length < maxLoras) {
      layers = new LoraLayer[maxLoras];
      oneForAll = new boolean[maxLoras];
    }
    int experts = 0;
    maxRank = 0;
    for (int s = 0; s < maxLoras; s++) {
      LoraLayer layer = context.slot(s);
      boolean applies = false;
      boolean shared = true;
      if (layer != null) {
        for (LoraFactors f : layer.factors().values()) {
          experts = Math.max(experts, f.numExperts());
        }
        for (LoraTarget target : targets) {
          LoraFactors f = layer.get(target);
          if (f != null) {
            applies = true;
            shared &= f.numExperts() == 1;
            maxRank = Math.max(maxRank, f.rank());
          }
        }
      }
      layers[s] = applies ? layer : null;
      oneForAll[s] = shared;
    }
    // With nothing but shared factors nobody says how many experts there are.
    expertBound = experts <= 1 ? Integer.MAX_VALUE : experts;
  }

  private void reserve(int numPairs, int maxLoras) {
    if (slotStart.length < maxLoras + 1) {
      slotStart = new int[maxLoras + 1];
    }
    if (found.length < numPairs) {
      int size = Math.max(64, Integer.highestOneBit(numPairs) * 2);
      slotOf = new int[size];
      expertOf = new int[size];
      found = new int[size];
      bySlot = new int[size];
      pairs = new int[size];
      groups = new int[size + 1];
    }
  }

  private void sort(int maxLoras, int maxExpert) {
    for (int s = 0; s < maxLoras; s++) {
      slotStart[s + 1] += slotStart[s];
    }
    for (int i = 0; i < pairCount; i++) {
      int p = found[i];
      bySlot[slotStart[slotOf[p]]++] = p;
    }
    if (expertStart.length < maxExpert + 2) {
      expertStart = new int[maxExpert + 2];
    }
    Arrays.fill(expertStart, 0, maxExpert + 2, 0);
    for (int i = 0; i < pairCount; i++) {
      expertStart[expertOf[found[i]] + 1]++;
    }
    for (int e = 0; e <= maxExpert; e++) {
      expertStart[e + 1] += expertStart[e];
    }
    for (int i = 0; i < pairCount; i++) {
      int p = bySlot[i];
      pairs[expertStart[expertOf[p]]++] = p;
    }
  }

  private void group() {
    groupCount = 0;
    for (int i = 0; i < pairCount; ) {
      int p = pairs[i];
      groups[groupCount++] = i;
      int end = i + 1;
      while (end < pairCount
          && end - i < GROUP_ROWS
          && slotOf[pairs[end]] == slotOf[p]
          && expertOf[pairs[end]] == expertOf[p]) {
        end++;
      }
      i = end;
    }
    groups[groupCount] = pairCount;
  }

  int pairCount() {
    return pairCount;
  }

  int groupCount() {
    return groupCount;
  }

  int maxRank() {
    return maxRank;
  }

  int groupStart(int group) {
    return groups[group];
  }

  int groupEnd(int group) {
    return groups[group + 1];
  }

  int pair(int i) {
    return pairs[i];
  }

  /** The local expert of a group; 0 where one factor serves all. */
  int expert(int group) {
    return expertOf[pairs[groups[group]]];
  }

  /** What the group's adapter does. */
  LoraLayer layer(int group) {
    return Objects.requireNonNull(layers[slotOf[pairs[groups[group]]]]);
  }

  /** Lets go of adapters, so that an idle plan keeps none alive. */
  void clear() {
    Arrays.fill(layers, null);
  }
}
