package io.moe4j.backend.triton.tuning;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.backend.triton.tiles.TilePlan;
import io.moe4j.backend.triton.tiles.TileTable;
import io.moe4j.backend.triton.tiles.TileTable.Problem;
import io.moe4j.cuda.ops.Shrink;
import io.moe4j.cuda.tuning.TunedEntry;
import io.moe4j.cuda.tuning.TuningFile;

/**
 * The tiles that were fastest for forwards of one size. What follows from the sizes (columns,
 * chunks of ranks, single pairs or sorted) is not kept.
 *
 * @param tokens {@code T}
 * @param adapters in slots, 0 = the base model
 * @param rank of them, padded to a page; 0 = the base model
 * @param w13 tile of the first GEMM
 * @param w2 tile of the second
 * @param sums whether w2 and the weighted sum are one launch, {@code w2} unused
 * @param permute whether the hidden states are copied into sorted order first
 * @param groupTiles neighbouring row tiles
 * @param shrinkRows rows of a shrink tile
 * @param shrink13 first shrink
 * @param shrink2 second shrink
 * @param micros of a forward, as measured
 * @param builtInMicros of a forward with the built-in choice, measured beside it
 */
record TileEntry(
    int tokens,
    int adapters,
    int rank,
    String w13,
    String w2,
    boolean sums,
    boolean permute,
    int groupTiles,
    int shrinkRows,
    Width shrink13,
    Width shrink2,
    double micros,
    double builtInMicros)
    implements TunedEntry {
  private static final String TILE = "[1-9]\\d{0,3}x[1-9]\\d{0,3}x[1-9]\\d{0,3}-[a-z0-9-]+";

  /**
   * A shrink's choice.
   *
   * @param ranks a program computes
   * @param step of the contraction
   * @param splits along the contraction
   */
  record Width(int ranks, int step, int splits) {
    static final Width NONE = new Width(0, 0, 0);

    boolean isPositive() {
      return ranks > 0 && step > 0 && splits > 0;
    }

    static Width of(Shrink s) {
      return new Width(s.ranks(), s.step(), s.splits());
    }
  }

  static TileEntry of(Problem p, TilePlan plan, double micros, double builtInMicros) {
    return new TileEntry(
        p.tokens(),
        p.slots(),
        p.rank(),
        plan.w13(),
        plan.w2(),
        plan.sums(),
        plan.permute(),
        plan.groupTiles(),
        plan.shrinkRows(),
        p.lora() ? Width.of(plan.shrink13()) : Width.NONE,
        p.lora() ? Width.of(plan.shrink2()) : Width.NONE,
        micros,
        builtInMicros);
  }

  /** {@return the plan of a forward with these tiles} */
  TilePlan plan(Problem p) {
    return new TilePlan(
        p.tuned(),
        TileTable.naive(p),
        w13,
        w2,
        TilePlan.rows(w13),
        TilePlan.columns(w13),
        TilePlan.columns(w2),
        sums,
        permute,
        groupTiles,
        shrinkRows,
        p.lora() ? shrink(shrink13, p, p.gated() ? 2 * p.rank() : p.rank()) : Shrink.NONE,
        p.lora() ? shrink(shrink2, p, p.rank()) : Shrink.NONE);
  }

  private static Shrink shrink(Width w, Problem p, int total) {
    return new Shrink(
        w.ranks(), w.step(), !TileTable.whole(p), Math.ceilDiv(total, w.ranks()), w.splits());
  }

  /** {@return whether its numbers and names can be computed with at all} */
  boolean isPlausible() {
    return hasSizes()
        && w13.matches(TILE)
        && w2.matches(TILE)
        && (adapters == 0 || (shrink13.isPositive() && shrink2.isPositive()));
  }

  /** How a file has it. */
  static final TuningFile.Form<TileEntry> FORM =
      new TuningFile.Form<>() {
        @Override
        public TileEntry read(JsonNode e) throws TuningFile.Unusable {
          return new TileEntry(
              TuningFile.number(e, "tokens"),
              TuningFile.number(e, "adapters"),
              TuningFile.number(e, "rank"),
              TuningFile.text(e, "w13"),
              TuningFile.text(e, "w2"),
              e.path("sums").asBoolean(),
              e.path("permute").asBoolean(),
              TuningFile.number(e, "group_tiles"),
              TuningFile.number(e, "shrink_rows"),
              width(e, "shrink13"),
              width(e, "shrink2"),
              TuningFile.micros(e, "us"),
              TuningFile.micros(e, "built_in_us"));
        }

        @Override
        public void write(TileEntry e, ObjectNode n) {
          n.put("tokens", e.tokens());
          n.put("adapters", e.adapters());
          n.put("rank", e.rank());
          n.put("w13", e.w13());
          n.put("w2", e.w2());
          n.put("sums", e.sums());
          n.put("permute", e.permute());
          n.put("group_tiles", e.groupTiles());
          n.put("shrink_rows", e.shrinkRows());
          if (e.adapters() > 0) {
            put(n.putArray("shrink13"), e.shrink13());
            put(n.putArray("shrink2"), e.shrink2());
          }
          n.put("us", TuningFile.rounded(e.micros()));
          n.put("built_in_us", TuningFile.rounded(e.builtInMicros()));
        }
      };

  private static void put(ArrayNode to, Width w) {
    to.add(w.ranks()).add(w.step()).add(w.splits());
  }

  private static Width width(JsonNode node, String key) throws TuningFile.Unusable {
    JsonNode value = node.path(key);
    if (value.isMissingNode()) {
      return Width.NONE;
    }
    if (!value.isArray() || value.size() != 3) {
      throw TuningFile.wrong(key, value, "[ranks, step, splits]");
    }
    return new Width(
        TuningFile.number(key, value.path(0)),
        TuningFile.number(key, value.path(1)),
        TuningFile.number(key, value.path(2)));
  }
}
