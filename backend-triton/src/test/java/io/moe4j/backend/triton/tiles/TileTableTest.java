package io.moe4j.backend.triton.tiles;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.platform.ComputeCapability;
import io.moe4j.backend.triton.launch.TritonKernels;
import io.moe4j.backend.triton.tiles.TileTable.Problem;
import io.moe4j.cuda.KernelSpec;
import io.moe4j.cuda.PtxVersion;
import io.moe4j.cuda.ops.ExpertKernels;
import io.moe4j.cuda.ops.Shrink;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class TileTableTest {
  private static final PtxVersion ANY = new PtxVersion(99, 0);
  private static final int[][] SHAPES = {
    {128, 8, 2048, 768},
    {128, 4, 2880, 2880},
    {8, 2, 4096, 14336},
    {16, 4, 64, 40},
    {8, 2, 96, 112},
    {8, 2, 128, 96},
    {300, 8, 512, 264},
    {4, 1, 7168, 2048},
    {64, 6, 2048, 1408},
    {1, 1, 128, 128},
    {4, 2, 4096, 14336}
  };
  private static final int[] TOKENS = {1, 2, 3, 4, 16, 17, 64, 200, 256, 1024, 4096, 8192};

  private static Problem problem(
      boolean tuned, boolean gated, int stages, int[] s, int tokens, int slots, int rank) {
    return new Problem(
        tuned, stages, gated, tokens, s[1], s[0], s[2], s[3], slots, rank, false, false);
  }

  private static Problem mxfp4(Problem p) {
    return new Problem(
        p.tuned(),
        p.stages(),
        true,
        p.tokens(),
        p.topK(),
        p.experts(),
        p.hidden(),
        p.intermediate(),
        p.slots(),
        p.rank(),
        false,
        true);
  }

  /** What won the sweeps on an H200. */
  @ParameterizedTest
  @CsvSource({
    "0, 1, 0, 0, 16x32x128-ptr-w4-s4, 16x128x64-tma-w4-s5, false",
    "0, 16, 0, 0, 16x64x128-tma-w4-s3, 16x64x128-tma-w4-s4, false",
    "0, 64, 16, 8, 16x32x256-ptr-w4-s3, 16x128x128-tma-w4-s3, false",
    "0, 256, 0, 0, 32x64x128-tma-w4-s3, 32x128x128-tma-w4-s3, false",
    "0, 256, 64, 8, 32x64x128-tma-w4-s3, 32x64x64-tma-w4-s5, false",
    "0, 1024, 0, 0, 128x128x64-tma-w8-s4-tail, 128x128x64-tma-w4-s3-tail, false",
    "0, 1024, 64, 32, 64x64x64-tma-w4-s4, 64x128x64-tma-w4-s4, false",
    "0, 4096, 64, 32, 64x128x64-tma-w4-s4, 64x128x64-tma-w4-s4, false",
    "0, 8192, 64, 32, 128x128x64-tma-w8-s4-tail, 128x256x64-tma-w8-s4-tail, false",
    "1, 256, 0, 0, 16x32x64-tma-w4-s6, 16x32x64-ptr-w4-s8, false",
    "1, 1024, 16, 1, 64x64x64-tma-w4-s4, 64x128x64-tma-w4-s4, false",
    "1, 1024, 16, 32, 64x64x64-tma-w4-s4, 64x128x64-tma-w4-s4, false",
    "1, 1024, 64, 32, 64x64x64-tma-w4-s4, 64x128x64-tma-w4-s4, false",
    "1, 8192, 0, 0, 128x128x64-tma-w8-s4-tail, 128x256x64-tma-w8-s4-tail, true",
    "2, 4, 0, 0, 16x32x256-ptr-w4-s3, 16x32x256-ptr-w4-s4, false",
    "2, 64, 0, 0, 32x64x128-tma-w4-s3, 32x128x128-tma-w4-s3, false",
    "2, 1024, 64, 32, 128x128x64-tma-w8-s4-tail, 128x256x64-tma-w8-s4-tail, true",
    "2, 256, 0, 0, 128x128x64-tma-w8-s4-tail, 128x128x64-tma-w4-s3-tail, false",
    "2, 4096, 0, 0, 128x128x64-tma-w8-s4-tail, 128x256x64-tma-w8-s4-tail, true",
    // Half of the experts of the same shape with all of their rows, as one of two ranks has them.
    "10, 128, 0, 0, 128x128x64-tma-w8-s4-tail, 128x128x64-tma-w8-s6-tail, false",
    "10, 512, 0, 0, 128x128x64-tma-w8-s4-tail, 128x128x64-tma-w8-s6-tail, true",
    "10, 2048, 0, 0, 128x128x64-tma-w8-s4-tail, 128x256x64-tma-w8-s4-tail, true",
  })
  void tunedTiles(
      int shape, int tokens, int rank, int slots, String w13, String w2, boolean permute) {
    TilePlan plan = TileTable.choose(problem(true, true, 3, SHAPES[shape], tokens, slots, rank));
    assertThat(plan.w13()).isEqualTo(w13);
    assertThat(plan.w2()).isEqualTo(w2);
    assertThat(plan.permute()).isEqualTo(permute);
    assertThat(plan.tileRows()).isEqualTo(Integer.parseInt(w13.substring(0, w13.indexOf('x'))));
  }

  @ParameterizedTest
  @CsvSource({
    "1, 16x32x256-ptr-w4, 16x32x256-ptr-w4, true",
    "8, 16x32x256-ptr-w4, 16x32x256-ptr-w4, true",
    "9, 16x64x128-ptr-w4, 16x128x128-ptr-w4, false",
    "511, 16x64x128-ptr-w4, 16x128x128-ptr-w4, false",
    "512, 64x64x64-ptr-w4, 64x128x64-ptr-w4, false",
    "3072, 128x64x64-ptr-w4, 128x128x64-ptr-w8, false",
  })
  void mxfp4Tiles(int tokens, String w13, String w2, boolean naive) {
    for (boolean tuned : new boolean[] {true, false}) {
      TilePlan plan =
          TileTable.choose(mxfp4(problem(tuned, true, tuned ? 3 : 2, SHAPES[1], tokens, 0, 0)));
      String end = tuned ? "-s3-any" : "-s2-any";
      assertThat(plan.w13()).isEqualTo(w13 + end);
      assertThat(plan.w2()).isEqualTo(w2 + end);
      assertThat(plan.naive()).isEqualTo(naive);
      assertThat(plan.permute()).isFalse();
    }
  }

  /** One token of the tuned set, up to the sizes that down.cu is quicker with. */
  @ParameterizedTest
  @CsvSource({
    "0, 1, true",
    "0, 2, false",
    "1, 1, true",
    "2, 1, false", // 14336 columns of two experts
    "3, 1, false", // 40 is no multiple of 64
    "4, 1, false", // 112
    "6, 1, false", // 264
    "7, 1, true",
    "8, 1, true",
    "9, 1, true",
  })
  void oneLaunchForTheSum(int shape, int tokens, boolean sums) {
    int[] s = SHAPES[shape];
    for (int slots : new int[] {0, 8}) {
      Problem p = problem(true, true, 3, s, tokens, slots, 2 * slots);
      assertThat(TileTable.choose(p).sums()).isEqualTo(sums);
      assertThat(TileTable.choose(problem(false, true, 3, s, tokens, slots, 2 * slots)).sums())
          .isFalse();
      assertThat(TileTable.choose(mxfp4(p)).sums()).isFalse();
    }
    int[] many = {128, 9, 2048, 768};
    assertThat(TileTable.choose(problem(true, true, 3, many, 1, 0, 0)).sums()).isFalse();
    assertThat(
            TritonKernels.cudaLibrary().variants("down", new ComputeCapability(9, 0), ANY).stream()
                .map(KernelSpec::constants))
        .containsExactlyInAnyOrder(
            Map.of("out", "same", "lora", "0"),
            Map.of("out", "same", "lora", "1"),
            Map.of("out", "f32", "lora", "0"),
            Map.of("out", "f32", "lora", "1"));
  }

  /** Whatever it chooses is in the jar, for every card. */
  @Test
  void everyChoiceWasCompiled() {
    check(new ComputeCapability(9, 0), "bf16", true, 3);
    check(new ComputeCapability(9, 0), "f16", false, 3);
    for (ComputeCapability c :
        List.of(
            new ComputeCapability(8, 0),
            new ComputeCapability(8, 9),
            new ComputeCapability(10, 0),
            new ComputeCapability(12, 0))) {
      for (String type : List.of("bf16", "f16")) {
        check(c, type, false, c.equals(new ComputeCapability(12, 0)) ? 2 : 3);
      }
    }
  }

  private static void check(ComputeCapability card, String type, boolean tuned, int stages) {
    Set<String> there = new HashSet<>();
    for (KernelSpec k : TritonKernels.library().variants("gemm", card, ANY)) {
      there.add(
          k.constants().get("type")
              + k.constants().get("stage")
              + k.constants().get("tile")
              + k.constants().get("act")
              + k.constants().get("lora")
              + k.constants().get("naive")
              + k.constants().get("gather"));
    }
    for (KernelSpec k : ExpertKernels.library().variants("shrink", card, ANY)) {
      there.add(
          k.constants().get("type")
              + k.constants().get("of")
              + " "
              + k.constants().get("step")
              + k.constants().get("any")
              + " "
              + k.constants().get("rows")
              + " "
              + k.constants().get("ranks")
              + k.constants().get("gather")
              + k.constants().get("naive"));
    }
    for (int[] shape : SHAPES) {
      for (int tokens : TOKENS) {
        for (int slots : type.equals("bf16") ? new int[] {0, 8} : new int[] {}) {
          Problem p = mxfp4(problem(tuned, true, stages, shape, tokens, slots, 2 * slots));
          TilePlan plan = TileTable.choose(p);
          String flags = (slots > 0 ? "1" : "0") + (plan.naive() ? "1" : "0");
          assertThat(there)
              .as("%s on %s: %s", p, card, plan)
              .contains("mxfp4w13" + plan.w13() + "any" + flags + "1")
              .contains("mxfp4w2" + plan.w2() + "none" + flags + "0");
          if (slots > 0) {
            String n = plan.naive() ? "1" : "0";
            assertThat(there)
                .as("%s on %s: %s", p, card, plan)
                .contains(shrink(type, "pair", plan, plan.shrink13(), "1", n))
                .contains(shrink(type, "down", plan, plan.shrink2(), "0", n));
          }
        }
        for (boolean gated : new boolean[] {true, false}) {
          Problem plain = problem(tuned, gated, stages, shape, tokens, 0, 0);
          TilePlan composed = TileTable.composed(plain, TileTable.choose(plain));
          assertThat(composed.tileRows()).isEqualTo(TileTable.choose(plain).tileRows());
          for (String tile : List.of(composed.w13(), composed.w2())) {
            assertThat(there)
                .as("%s on %s: %s", plain, card, composed)
                .contains(type + "w2" + tile + "none0" + (composed.naive() ? "1" : "0") + "0");
            assertThat(tile).startsWith(composed.tileRows() + "x");
          }
          assertThat(TilePlan.any(composed.w13()) || shape[2] % TilePlan.step(composed.w13()) == 0)
              .as("%s: %s", plain, composed)
              .isTrue();
          for (int slots : new int[] {0, 1, 2, 8, 32, 100}) {
            for (int rank : slots == 0 ? new int[] {0} : new int[] {16, 32, 64, 128, 512}) {
              Problem p = problem(tuned, gated, stages, shape, tokens, slots, rank);
              TilePlan plan = TileTable.choose(p);
              String n = plan.naive() ? "1" : "0";
              String g = plan.permute() ? "0" : "1";
              String lora = slots > 0 ? "1" : "0";
              for (String act : gated && tuned ? List.of("silu", "any") : List.of("any")) {
                assertThat(there)
                    .as("%s on %s: %s", p, card, plan)
                    .contains(type + (gated ? "w13" : "w1") + plan.w13() + act + lora + n + g);
              }
              assertThat(there)
                  .as("%s on %s: %s", p, card, plan)
                  .contains(type + "w2" + plan.w2() + "none" + lora + n + "0");
              if (slots > 0) {
                assertThat(there)
                    .as("%s on %s: %s", p, card, plan)
                    .contains(shrink(type, gated ? "pair" : "single", plan, plan.shrink13(), g, n))
                    .contains(shrink(type, "down", plan, plan.shrink2(), "0", n));
              }
            }
          }
        }
      }
    }
  }

  private static String shrink(
      String type, String of, TilePlan plan, Shrink s, String gather, String naive) {
    return type
        + of
        + " "
        + s.step()
        + (s.any() ? "1" : "0")
        + " "
        + plan.shrinkRows()
        + " "
        + s.ranks()
        + gather
        + naive;
  }

  /** The first product runs on tiles of the second, whose steps divide another contraction. */
  @Test
  void aTunedTileServesBothProductsOnlyIfItsStepsDivideBoth() {
    Problem p = problem(true, true, 4, new int[] {8, 2, 200, 768}, 64, 0, 0);
    TilePlan tuned =
        TileTable.plan(p, "16x32x64-ptr-w4-s4-any", "16x64x128-tma-w4-s4", false, 8, 16);
    TilePlan composed = TileTable.composed(p, tuned);
    assertThat(TilePlan.any(composed.w13())).isTrue();
    assertThat(composed.w2()).isEqualTo(TileTable.choose(p).w2());
    Problem q = problem(true, true, 4, new int[] {8, 2, 256, 768}, 4, 0, 0);
    assertThat(TileTable.composed(q, TileTable.choose(q)).w2()).isEqualTo(TileTable.choose(q).w2());
  }
}
