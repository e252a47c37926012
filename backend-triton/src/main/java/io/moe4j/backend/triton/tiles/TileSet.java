package io.moe4j.backend.triton.tiles;

import io.moe4j.api.platform.ComputeCapability;
import io.moe4j.backend.triton.tiles.TileTable.Problem;
import io.moe4j.cuda.KernelLibrary;
import io.moe4j.cuda.KernelSpec;
import io.moe4j.cuda.PtxVersion;
import io.moe4j.cuda.ops.Shrink;
import io.moe4j.cuda.ops.ShrinkRules;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.stream.Collectors;

/**
 * The tiles that are compiled for a card and a kind of layer: those of the newest target the card
 * runs. Kernels of an older target are there for cards without a newer one. Immutable; its answers
 * are pure functions of their arguments.
 */
public final class TileSet {
  private static final int MOST_GROUP = 64;

  /**
   * What of a layer decides which kernels it runs.
   *
   * @param type of the GEMMs: {@code bf16}, {@code f16}, {@code mxfp4}
   * @param shrinkType of the shrinks: {@code bf16}, {@code f16}
   * @param gated whether w13 has gate rows
   * @param activation of the first GEMM: {@code silu}, {@code any}
   */
  public record Kind(String type, String shrinkType, boolean gated, String activation) {
    String stage() {
      return gated ? "w13" : "w1";
    }

    String shrink() {
      return gated ? "pair" : "single";
    }
  }

  private record Gemm(String stage, String tile, boolean lora, boolean naive, boolean gather) {}

  private record Down(
      String of, int step, boolean any, int rows, int ranks, boolean gather, boolean naive) {}

  private final Kind kind;
  private final Set<Gemm> gemms = new HashSet<>();
  private final Set<Down> shrinks = new HashSet<>();
  private final Set<String> tiles13 = new LinkedHashSet<>();
  private final Set<String> tiles2 = new LinkedHashSet<>();

  private TileSet(Kind kind) {
    this.kind = kind;
  }

  /**
   * What there is for a card.
   *
   * @param gemms the library with the GEMMs
   * @param shrinks the library with the shrinks
   * @param card its capability
   * @param isa the newest PTX its driver compiles
   * @param kind of layer
   * @return the set
   */
  public static TileSet of(
      KernelLibrary gemms,
      KernelLibrary shrinks,
      ComputeCapability card,
      PtxVersion isa,
      Kind kind) {
    TileSet set = new TileSet(kind);
    for (KernelSpec k : newest(gemms.variants("gemm", card, isa), kind.type())) {
      Map<String, String> c = k.constants();
      String stage = c.getOrDefault("stage", "");
      boolean first = stage.equals(kind.stage());
      boolean fits = first ? kind.activation().equals(c.get("act")) : stage.equals("w2");
      if (fits) {
        String tile = c.getOrDefault("tile", "");
        set.gemms.add(new Gemm(stage, tile, is(c, "lora"), is(c, "naive"), is(c, "gather")));
        (first ? set.tiles13 : set.tiles2).add(tile);
      }
    }
    for (KernelSpec k : newest(shrinks.variants("shrink", card, isa), kind.shrinkType())) {
      Map<String, String> c = k.constants();
      set.shrinks.add(
          new Down(
              c.getOrDefault("of", ""),
              number(c, "step"),
              is(c, "any"),
              number(c, "rows"),
              number(c, "ranks"),
              is(c, "gather"),
              is(c, "naive")));
    }
    return set;
  }

  private static List<KernelSpec> newest(List<KernelSpec> all, String type) {
    List<KernelSpec> typed =
        all.stream().filter(k -> type.equals(k.constants().get("type"))).toList();
    return typed.stream()
        .map(KernelSpec::arch)
        .max(java.util.Comparator.naturalOrder())
        .map(best -> typed.stream().filter(k -> k.arch().equals(best)).toList())
        .orElse(List.of());
  }

  private static boolean is(Map<String, String> constants, String name) {
    return "1".equals(constants.get(name));
  }

  private static int number(Map<String, String> constants, String name) {
    return Integer.parseInt(constants.getOrDefault(name, "0"));
  }

  /**
   * {@return whether a plan can run: all of its kernels are there, and their steps divide what they
   * contract}
   *
   * @param p the forward
   * @param plan made for it
   */
  public boolean has(Problem p, TilePlan plan) {
    boolean naive = TileTable.naive(p);
    if (plan.naive() != naive
        || plan.tuned() != p.tuned()
        || (plan.permute() && naive)
        || (plan.sums() && !TileTable.sums(p))
        || plan.groupTiles() < 1
        || plan.groupTiles() > MOST_GROUP
        || !has(p, kind.stage(), plan.w13(), !plan.permute(), p.hidden())
        || !has(p, "w2", plan.w2(), false, p.intermediate())
        || TilePlan.rows(plan.w13()) != TilePlan.rows(plan.w2())) {
      return false;
    }
    return !p.lora()
        || (has(p, kind.shrink(), plan, plan.shrink13(), !plan.permute(), p.hidden())
            && has(p, "down", plan, plan.shrink2(), false, p.intermediate()));
  }

  private boolean has(Problem p, String stage, String tile, boolean gather, int contraction) {
    return gemms.contains(new Gemm(stage, tile, p.lora(), TileTable.naive(p), gather))
        && (TilePlan.any(tile) || contraction % TilePlan.step(tile) == 0);
  }

  private boolean has(
      Problem p, String of, TilePlan plan, Shrink s, boolean gather, int contraction) {
    return shrinks.contains(
            new Down(of, s.step(), s.any(), plan.shrinkRows(), s.ranks(), gather, plan.naive()))
        && s.any() == !TileTable.whole(p)
        && (s.any() || contraction % s.step() == 0)
        && Integer.bitCount(s.splits()) == 1
        && s.splits() <= ShrinkRules.mostSplits(contraction, s.step(), plan.shrinkRows());
  }

  /** {@return tiles of the first GEMM that a forward could run with, in the manifest's order} */
  public List<String> first(Problem p, boolean permute) {
    return tiles13.stream().filter(t -> has(p, kind.stage(), t, !permute, p.hidden())).toList();
  }

  /** {@return tiles of the second GEMM of that many rows} */
  public List<String> second(Problem p, int rows) {
    return tiles2.stream()
        .filter(t -> TilePlan.rows(t) == rows && has(p, "w2", t, false, p.intermediate()))
        .toList();
  }

  /** {@return heights of shrink tiles for these GEMMs, ascending} */
  public Set<Integer> shrinkRows(Problem p, boolean permute) {
    return shrinks.stream()
        .filter(d ->
            d.of().equals(kind.shrink())
                && d.gather() == !permute
                && d.any() == !TileTable.whole(p)
                && d.naive() == TileTable.naive(p))
        .map(Down::rows)
        .collect(Collectors.toCollection(TreeSet::new));
  }

  /**
   * Shrinks that could stand in place of one of a plan's.
   *
   * @param p the forward
   * @param plan whose shrink
   * @param first which of the two
   * @return every width and step that is compiled, each with the splits of the plan's and half and
   *     twice as many, as far as {@link #has} allows
   */
  public List<Shrink> shrinks(Problem p, TilePlan plan, boolean first) {
    Shrink now = first ? plan.shrink13() : plan.shrink2();
    int total = p.rank() * (first && p.gated() ? 2 : 1);
    List<Shrink> all = new ArrayList<>();
    shrinks.stream()
        .filter(d -> d.of().equals(first ? kind.shrink() : "down"))
        .map(d -> new int[] {d.ranks(), d.step()})
        .sorted(java.util.Arrays::compare)
        .forEach(d -> {
          for (int splits : new int[] {now.splits() / 2, now.splits(), now.splits() * 2}) {
            Shrink s =
                new Shrink(d[0], d[1], now.any(), Math.ceilDiv(total, d[0]), Math.max(1, splits));
            TilePlan with = first ? plan.with(s, plan.shrink2()) : plan.with(plan.shrink13(), s);
            if (!all.contains(s) && has(p, with)) {
              all.add(s);
            }
          }
        });
    return all;
  }
}
