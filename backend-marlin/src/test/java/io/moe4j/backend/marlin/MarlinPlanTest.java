package io.moe4j.backend.marlin;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.tensor.DType;
import io.moe4j.cuda.KernelSpec;
import io.moe4j.cuda.ops.ExpertKernels;
import io.moe4j.cuda.ops.Shrink;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.junit.jupiter.api.Test;

/** Whatever is chosen is compiled, and fits. */
class MarlinPlanTest {
  private static final int[] TOKENS = {1, 2, 3, 4, 9, 16, 40, 64, 100, 256, 1024, 8192};
  private static final int[][] LAYERS = {
    {128, 8, 2048, 768}, {128, 4, 2880, 2880}, {8, 2, 4096, 14336}, {8, 2, 72, 24}, {1, 1, 8, 8}
  };

  static MarlinPlan.Problem problem(
      QuantScheme scheme, int major, int[] layer, int tokens, int rank, boolean sorted) {
    PackedLayout first = PackedLayout.of(scheme, layer[3], layer[2]);
    PackedLayout second = PackedLayout.of(scheme, layer[2], layer[3]);
    DeviceInfo card = DeviceInfo.cuda(0, "a card", major, 0);
    return new MarlinPlan.Problem(
        MarlinKernels.heights(card, MarlinKernels.NARROW, first.formatName(), DType.BF16),
        MarlinKernels.heights(card, MarlinKernels.WIDE, first.formatName(), DType.BF16),
        MarlinKernels.hasSingle(card, first.formatName(), DType.BF16),
        first,
        second,
        true,
        tokens,
        layer[1],
        layer[0],
        layer[2],
        layer[3],
        rank == 0 ? 0 : 4,
        rank,
        sorted,
        major == 9,
        132);
  }

  @Test
  void everyPlanFitsItsCard() {
    for (QuantScheme scheme : KernelsTest.schemes()) {
      for (int major : new int[] {8, 9, 10, 12}) {
        for (int[] layer : LAYERS) {
          for (int tokens : TOKENS) {
            for (int rank : new int[] {0, 16, 1024}) {
              for (boolean sorted : new boolean[] {false, true}) {
                MarlinPlan.Problem p = problem(scheme, major, layer, tokens, rank, sorted);
                check(p, MarlinPlan.choose(p));
                if (rank == 0) {
                  checkComposed(p, MarlinPlan.choose(p));
                }
              }
            }
          }
        }
      }
    }
  }

  static void check(MarlinPlan.Problem p, MarlinPlan plan) {
    assertThat(plan.fits(p)).as("%s in %s", plan, p).isTrue();
    if (isSingle(plan)) {
      checkSingle(p, plan);
      return;
    }
    assertThat(plan.shrinks().early()).isFalse();
    assertThat(plan.first().rows()).as("%s", p).isEqualTo(plan.second().rows());
    check(p, plan.naive(), plan.first(), p.first(), 128);
    check(p, plan.naive(), plan.second(), p.second(), 256);
  }

  /** Up to sixteen experts of a token, one for each warp; the shrink lets w2 in. */
  private static void checkSingle(MarlinPlan.Problem p, MarlinPlan plan) {
    assertThat(p.single() && plan.naive() && p.topK() <= 16).as("%s", p).isTrue();
    if (plan.first().kind().equals(MarlinKernels.SINGLE)) {
      assertThat(plan.first().outputs() * plan.first().warps()).isEqualTo(128);
    } else {
      check(p, true, plan.first(), p.first(), 128);
    }
    assertThat(plan.second()).isEqualTo(ProductPlan.single(p.second(), 8, true));
    assertThat(plan.shrinks().early()).isTrue();
    for (ProductPlan g : List.of(plan.first(), plan.second())) {
      assertThat(g.sharedBytes()).isPositive().isLessThanOrEqualTo(ProductPlan.SINGLE_SHARED_BYTES);
    }
  }

  private static boolean isSingle(MarlinPlan plan) {
    return plan.second().kind().equals(MarlinKernels.SINGLE);
  }

  /** w13 as one matrix of gate and up: the outputs of a block of w2. */
  private static void checkComposed(MarlinPlan.Problem p, MarlinPlan plan) {
    MarlinPlan composed = plan.composed(p);
    assertThat(composed.second())
        .isEqualTo(
            isSingle(plan)
                ? MarlinPlan.of(p, MarlinKernels.NARROW, p.narrow().getFirst()).second()
                : plan.second());
    assertThat(composed.first().rows()).isEqualTo(composed.second().rows());
    check(p, composed.naive(), composed.first(), p.first(), 256);
  }

  private static void check(
      MarlinPlan.Problem p, boolean naive, ProductPlan g, PackedLayout w, int wideOutputs) {
    boolean wide = g.kind().equals(MarlinKernels.WIDE);
    assertThat(wide ? p.wide() : p.narrow()).as("%s", p).contains(g.rows());
    assertThat(g.sharedBytes())
        .as("%s in %s", g, p)
        .isPositive()
        .isLessThanOrEqualTo(
            wide ? ProductPlan.WIDE_SHARED_BYTES : ProductPlan.NARROW_SHARED_BYTES);
    assertThat(naive && wide).isFalse();
    if (wide) {
      // Warpgroups that share the contraction take every other chunk, so their number is even.
      assertThat(g.warps() == 1 || (g.warps() == 2 && g.rows() == 32 && w.chunks() % 2 == 0))
          .as("%s", g)
          .isTrue();
      int outputs = g.rows() == ProductPlan.MIDDLE ? wideOutputs / 2 : wideOutputs;
      assertThat(g.outputs() * g.warps()).isEqualTo(outputs);
    } else {
      assertThat(g.warps()).isIn(1, 2, 4, 8);
      assertThat(g.phase()).isPositive();
      // A phase ends where a round of the warps ends, or the contraction does.
      assertThat(
              g.phase() % (g.warps() * ProductPlan.unit(w, g.rows())) == 0
                  || g.phase() >= w.chunks())
          .as("%s", g)
          .isTrue();
    }
  }

  @Test
  void everyShrinkOfAPlanIsCompiled() {
    Set<Map<String, String>> there = new HashSet<>();
    for (KernelSpec k : ExpertKernels.library().kernels()) {
      if (k.name().equals("shrink") && k.arch().toString().matches("sm_80|sm_90a")) {
        there.add(k.constants());
      }
    }
    for (int[] layer : LAYERS) {
      for (int tokens : TOKENS) {
        for (int rank : new int[] {16, 64, 1024}) {
          MarlinPlan.Problem p = problem(QuantScheme.int4(8 * 16), 9, layer, tokens, rank, false);
          MarlinPlan plan = MarlinPlan.choose(p);
          assertThat(there).contains(shrink(plan, plan.shrinks().first(), true));
          assertThat(there).contains(shrink(plan, plan.shrinks().second(), false));
        }
      }
    }
  }

  private static Map<String, String> shrink(MarlinPlan plan, Shrink s, boolean first) {
    return Map.of(
        "type",
        "bf16",
        "of",
        first ? "pair" : "down",
        "step",
        Integer.toString(s.step()),
        "any",
        s.any() ? "1" : "0",
        "rows",
        Integer.toString(plan.shrinks().rows()),
        "ranks",
        Integer.toString(s.ranks()),
        "gather",
        first ? "1" : "0",
        "naive",
        plan.naive() ? "1" : "0");
  }

  @Test
  void heightsFollowTheRowsOfAnExpert() {
    QuantScheme int4 = QuantScheme.int4(128);
    assertThat(MarlinPlan.choose(problem(int4, 9, LAYERS[0], 1, 0, false)).naive()).isTrue();
    assertThat(rows(9, 64)).isEqualTo(8);
    assertThat(rows(9, 256)).isEqualTo(32);
    assertThat(rows(9, 512)).isEqualTo(64);
    assertThat(rows(9, 1024)).isEqualTo(80);
    assertThat(rows(9, 1280)).isEqualTo(160);
    assertThat(rows(9, 8192)).isEqualTo(160);
    assertThat(rows(8, 64)).isEqualTo(16);
    assertThat(rows(8, 8192)).isEqualTo(64);
  }

  /** Where the expand of many adapters takes as long as the product. */
  @Test
  void manyRanksTakeTilesOf64Rows() {
    MarlinPlan.Problem qwen3 = problem(QuantScheme.int4(128), 9, LAYERS[0], 1024, 0, false);
    MarlinPlan.Problem mixtral = problem(QuantScheme.int4(128), 9, LAYERS[2], 1024, 0, false);
    assertThat(MarlinPlan.choose(qwen3.of(1024, 32, 64)).first().rows()).isEqualTo(64);
    assertThat(MarlinPlan.choose(qwen3.of(8192, 32, 64)).first().rows()).isEqualTo(64);
    assertThat(MarlinPlan.choose(qwen3.of(16384, 32, 64)).first().rows()).isEqualTo(160);
    assertThat(MarlinPlan.choose(qwen3.of(1024, 8, 16)).first().rows()).isEqualTo(80);
    assertThat(MarlinPlan.choose(mixtral.of(4096, 32, 64)).first().rows()).isEqualTo(160);
  }

  /** Height 80 is built for few formats; others keep the height next to it. */
  @Test
  void middleTilesWhereTheyWereBuilt() {
    assertThat(rows(QuantScheme.int4(128), 1024)).isEqualTo(80);
    assertThat(rows(QuantScheme.FP8_BLOCK, 1024)).isEqualTo(80);
    for (QuantScheme other : List.of(QuantScheme.int4(32), QuantScheme.MXFP4)) {
      assertThat(rows(other, 512)).isEqualTo(64);
      assertThat(rows(other, 1024)).isEqualTo(160);
    }
    for (QuantScheme scheme : List.of(QuantScheme.int4(128), QuantScheme.FP8_BLOCK)) {
      for (int layer : new int[] {0, 1, 2}) {
        for (int tokens = 1; tokens <= 8192; tokens += 37) {
          MarlinPlan.Problem p = problem(scheme, 9, LAYERS[layer], tokens, 16, false);
          boolean many = p.experts() == 128; // 8 experts have 256 blocks of w2
          assertThat(MarlinPlan.choose(p).first().rows() == 80)
              .as("%s", p)
              .isEqualTo(many && p.rows() >= 48 && p.rows() <= 72);
        }
      }
    }
  }

  private static int rows(QuantScheme scheme, int tokens) {
    return MarlinPlan.choose(problem(scheme, 9, LAYERS[0], tokens, 0, false)).first().rows();
  }

  /** Pairs that are not sorted go through single where it is there. */
  @Test
  void fewPairsAreSingle() {
    QuantScheme int4 = QuantScheme.int4(128);
    QuantScheme fp8 = QuantScheme.FP8_BLOCK;
    assertThat(isSingle(MarlinPlan.choose(problem(int4, 9, LAYERS[0], 1, 16, false)))).isTrue();
    assertThat(isSingle(MarlinPlan.choose(problem(int4, 9, LAYERS[0], 4, 16, false)))).isFalse();
    assertThat(isSingle(MarlinPlan.choose(problem(fp8, 9, LAYERS[0], 4, 16, false)))).isTrue();
    MarlinPlan large = MarlinPlan.choose(problem(int4, 9, LAYERS[2], 1, 0, false));
    assertThat(isSingle(large)).isTrue();
    assertThat(large.first().kind()).isEqualTo(MarlinKernels.NARROW);
    assertThat(MarlinPlan.choose(problem(fp8, 9, LAYERS[2], 1, 0, false)).first().kind())
        .isEqualTo(MarlinKernels.SINGLE);
    assertThat(isSingle(MarlinPlan.choose(problem(int4, 9, LAYERS[0], 16, 0, false)))).isFalse();
    assertThat(isSingle(MarlinPlan.choose(problem(int4, 9, LAYERS[0], 1, 0, true)))).isFalse();
    assertThat(isSingle(MarlinPlan.choose(problem(int4, 8, LAYERS[0], 1, 0, false)))).isFalse();
    // A block of 12.x may not have the shared memory.
    assertThat(isSingle(MarlinPlan.choose(problem(int4, 10, LAYERS[0], 1, 0, false)))).isTrue();
    assertThat(isSingle(MarlinPlan.choose(problem(int4, 12, LAYERS[0], 1, 0, false)))).isFalse();
    assertThat(
            isSingle(MarlinPlan.choose(problem(int4, 9, new int[] {64, 17, 64, 64}, 1, 0, false))))
        .isFalse();
  }

  /** In 4 bits blocks of w2 find room beside those of w13. */
  @Test
  void oneTokenHasFewerWarpsAnOutputInFourBits() {
    for (int layer : new int[] {0, 1}) {
      MarlinPlan.Problem int4 = problem(QuantScheme.int4(128), 9, LAYERS[layer], 1, 0, false);
      assertThat(MarlinPlan.choose(int4).first().warps()).isEqualTo(4);
      MarlinPlan.Problem fp8 = problem(QuantScheme.FP8_BLOCK, 9, LAYERS[layer], 1, 0, false);
      assertThat(MarlinPlan.choose(fp8).first().warps()).isEqualTo(8);
    }
  }

  /** w2 sums up whatever w13 was: an expert without a gate has narrow's. */
  @Test
  void withoutAGateW13IsNarrow() {
    MarlinPlan.Problem p = problem(QuantScheme.int4(128), 9, LAYERS[0], 1, 0, false);
    MarlinPlan.Problem plain =
        new MarlinPlan.Problem(
            p.narrow(),
            p.wide(),
            true,
            p.first(),
            p.second(),
            false,
            1,
            p.topK(),
            p.experts(),
            p.hidden(),
            p.intermediate(),
            0,
            0,
            false,
            true,
            p.multiprocessors());
    MarlinPlan plan = MarlinPlan.choose(plain);
    assertThat(plan.fits(plain)).isTrue();
    assertThat(plan.first().kind()).isEqualTo(MarlinKernels.NARROW);
    assertThat(plan.second().kind()).isEqualTo(MarlinKernels.SINGLE);
  }

  /** The numbers that were fastest on an H200. */
  @Test
  void warpsFillTheCard() {
    assertThat(warps(0, 1)).containsExactly(4, 2);
    assertThat(warps(0, 64)).containsExactly(1, 1);
    assertThat(warps(1, 4)).containsExactly(1, 2);
    assertThat(warps(1, 64)).containsExactly(1, 1);
    assertThat(warps(2, 4)).containsExactly(2, 4);
    assertThat(warps(2, 16)).containsExactly(1, 2);
  }

  /** An expert's rows, and not much more, fill its tiles evenly. */
  @Test
  void tallTilesShareAnExpertsRows() {
    assertThat(tileRows(0, 256)).isEqualTo(32);
    assertThat(tileRows(0, 1024)).isEqualTo(80);
    assertThat(tileRows(2, 256)).isEqualTo(160); // 64 rows of eight experts, too few blocks of 80
    assertThat(tileRows(1, 4096)).isEqualTo(160); // 128 rows an expert
    assertThat(tileRows(0, 4096)).isEqualTo(144); // 256: two, with room for 288
    assertThat(tileRows(0, 8192)).isEqualTo(144); // 512: four
    assertThat(tileRows(2, 4096)).isEqualTo(160); // 1024: seven
    assertThat(tileRows(2, 64 * 1024)).isBetween(144, 160);
  }

  private static int tileRows(int layer, int tokens) {
    MarlinPlan.Problem p = problem(QuantScheme.int4(128), 9, LAYERS[layer], tokens, 0, false);
    return MarlinPlan.choose(p).tileRows(p);
  }

  /**
   * 256 blocks of mixtral's w2 are two a multiprocessor, 192 short ones of qwen3's w13 are free.
   */
  @Test
  void fewBlocksAreSpreadEvenly() {
    assertThat(twoBlocks(2, 1)).containsExactly(true, true);
    assertThat(twoBlocks(2, 16)).containsExactly(false, true);
    assertThat(twoBlocks(0, 1)).containsExactly(false, false);
    assertThat(twoBlocks(0, 4)).containsExactly(false, true);
    assertThat(twoBlocks(0, 64)).containsExactly(false, false);
  }

  private static boolean[] twoBlocks(int layer, int tokens) {
    MarlinPlan plan = narrow(layer, tokens);
    return new boolean[] {holdsTwo(plan.first()), holdsTwo(plan.second())};
  }

  /** 228 KiB a multiprocessor, of which each block takes one for itself. */
  private static boolean holdsTwo(ProductPlan plan) {
    return (228 << 10) / (plan.sharedBytes() + (1 << 10)) == 2;
  }

  /** 128 blocks of whole contractions would leave half of the card empty. */
  @Test
  void aContractionIsSplitWhereBlocksAreFew() {
    MarlinPlan plan = MarlinPlan.choose(problem(QuantScheme.int4(128), 9, LAYERS[2], 64, 0, false));
    assertThat(plan.first().kind()).isEqualTo(MarlinKernels.WIDE);
    assertThat(plan.first().warps()).isEqualTo(1);
    assertThat(plan.second().warps()).isEqualTo(2);
    assertThat(plan.second().outputs()).isEqualTo(128);
  }

  private static int[] warps(int layer, int tokens) {
    MarlinPlan plan = narrow(layer, tokens);
    return new int[] {plan.first().warps(), plan.second().warps()};
  }

  private static MarlinPlan narrow(int layer, int tokens) {
    return MarlinPlan.of(
        problem(QuantScheme.int4(128), 9, LAYERS[layer], tokens, 0, false),
        MarlinKernels.NARROW,
        8);
  }

  private static int rows(int major, int tokens) {
    return MarlinPlan.choose(problem(QuantScheme.int4(128), major, LAYERS[0], tokens, 0, false))
        .first()
        .rows();
  }
}
